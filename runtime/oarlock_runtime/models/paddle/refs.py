"""A tensor of a Paddle directory as the core takes it: slices of parameters, turned, unpacked and joined over ranks.

Used by the engine process and the command line. Quantized matrices keep their codes: int8 becomes q8_0 and int4 q4_0,
blocks of 32 codes with a float16 scale, by giving each block its output's (or group's) scale. That is exact for float16
scales, and for bfloat16 ones from 2**-17 to 65504; smaller ones are rounded to float16's subnormals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.paddle.packing import q4_0_rows, q8_0_rows, unpack
from oarlock_runtime.models.paddle.parameters import Record
from oarlock_runtime.models.tensors import BLOCK, Array, Span, TensorRef, from_bf16

ROWS = 512  # outputs that are turned at a time


class Slice(Protocol):
    """Some outputs of one rank's parameter. `format` is what `read` delivers, nbytes the share of the file."""

    @property
    def record(self) -> Record: ...

    @property
    def format(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> Array:
        """As the core takes them: [outputs, inputs], or rows of blocks, or [outputs] of a vector."""

    def floats(self) -> npt.NDArray[np.float32]:
        """Their values."""

    def release(self) -> None:
        """Gives back the file's pages."""

    def outputs(self, start: int, stop: int) -> "Slice":
        """The slice of its own outputs [start, stop)."""


@dataclass(frozen=True)
class DenseSlice:
    """Outputs [start, stop) of a matrix, whose inputs are its rows when `turned`, or of a vector."""

    record: Record
    start: int
    stop: int
    turned: bool = False

    @property
    def format(self) -> str:
        return self.record.parameter.dtype

    @property
    def nbytes(self) -> int:
        parameter = self.record.parameter
        return parameter.nbytes // parameter.dims[1 if self.turned else 0] * (self.stop - self.start)

    def read(self) -> Array:
        array = self.record.array()
        if not self.turned:
            return array[self.start : self.stop]
        out = np.empty((self.stop - self.start, array.shape[0]), array.dtype)
        for at in range(0, array.shape[0], ROWS):  # turned in pieces that stay in the processor's cache
            out[:, at : at + ROWS] = array[at : at + ROWS, self.start : self.stop].T
        return out

    def floats(self) -> npt.NDArray[np.float32]:
        values = self.read()
        return from_bf16(values) if self.record.parameter.dtype == "bf16" else values.astype(np.float32)

    def release(self) -> None:
        self.record.release()

    def outputs(self, start: int, stop: int) -> "DenseSlice":
        return replace(self, start=self.start + start, stop=self.start + stop)


@dataclass(frozen=True)
class PackedSlice:
    """Outputs [start, stop) of a weight-only matrix of `bits` in `packing`; scales [N] or [groups, N], of `group`."""

    record: Record
    scales: Record
    bits: int
    packing: str
    group: int
    start: int
    stop: int

    @property
    def format(self) -> str:
        return "q8_0" if self.bits == 8 else "q4_0"

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.record.parameter.dims[1] * self.bits // 8

    def codes(self) -> npt.NDArray[np.int8]:
        return unpack(self.record.array().view(np.uint8), self.bits, self.packing, self.start, self.stop)

    def scale_of_blocks(self) -> npt.NDArray[np.float32]:
        """[outputs, inputs / 32]"""
        stored = self.scales.array()
        scales = from_bf16(stored) if self.scales.parameter.dtype == "bf16" else stored.astype(np.float32)
        if not np.isfinite(scales).all() or np.abs(scales).max() > np.finfo(np.float16).max:
            raise self.scales.error("a scale is not a finite float16")
        rows = np.atleast_2d(scales)[:, self.start : self.stop].T
        blocks = self.record.parameter.dims[1] // BLOCK
        return np.repeat(rows, blocks if rows.shape[1] == 1 else self.group // BLOCK, axis=1)[:, :blocks]

    def read(self) -> Array:
        scales = self.scale_of_blocks().astype(np.float16)
        return (q8_0_rows if self.bits == 8 else q4_0_rows)(self.codes(), scales)

    def floats(self) -> npt.NDArray[np.float32]:
        codes, scales = self.codes(), self.scale_of_blocks()
        values = codes.reshape(len(codes), -1, BLOCK) * scales[..., None]
        return values.reshape(codes.shape)

    def release(self) -> None:
        self.record.release()
        self.scales.release()

    def outputs(self, start: int, stop: int) -> "PackedSlice":
        return replace(self, start=self.start + start, stop=self.start + stop)


@dataclass(frozen=True)
class PaddleRef(TensorRef):
    """A tensor made of equal slices, joined along `axis`: 0 the outputs, 1 the inputs. None: of a rank not opened."""

    slices: Sequence[Slice | None] = ()
    axis: int = 0

    def narrowed(self, rows: Span | None, columns: Span | None) -> tuple[Self, Span | None, Span | None]:
        wanted = rows if self.axis == 0 else columns
        if wanted is None or not len(wanted):
            return self, rows, columns
        share = self.shape[self.axis] // len(self.slices)
        first, last = wanted.start // share, (wanted.stop - 1) // share
        kept = list(self.slices[first : last + 1])
        held = Span(first * share, (last + 1) * share)
        if self.axis == 0:  # outputs can be cut out of a slice
            starts = range(held.start, held.stop, share)
            kept = [
                part and part.outputs(max(wanted.start - start, 0), min(wanted.stop - start, share))
                for start, part in zip(starts, kept, strict=True)
            ]
            held = wanted
        shape = tuple(len(held) if axis == self.axis else size for axis, size in enumerate(self.shape))
        nbytes = sum(part.nbytes for part in kept if part is not None)
        narrow = replace(self, shape=shape, slices=kept, nbytes=nbytes)
        within = None if held == wanted else Span(wanted.start - held.start, wanted.stop - held.start)
        return narrow, None if self.axis == 0 else rows, within if self.axis == 1 else columns

    def read(self) -> npt.NDArray[Any]:
        if len(self.shape) == 1:
            return self.dequantize()
        return self._joined([part.read() for part in self._opened()])

    def dequantize(self) -> npt.NDArray[np.float32]:
        return self._joined([part.floats() for part in self._opened()])

    def release(self) -> None:
        for part in self.slices:
            if part is not None:
                part.release()

    def _opened(self) -> list[Slice]:
        found = [part for part in self.slices if part is not None]
        if len(found) < len(self.slices):
            raise CheckpointError(f"{self.file.path}: {self.source}: another rank's share is wanted, and not opened")
        return found

    def _joined(self, parts: list[Array]) -> Array:
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)
