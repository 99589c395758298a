"""A tensor of a checkpoint as the core takes it: where it lies, what it is stored as, what reading it delivers.

Files are memory-mapped and read on demand; `release` gives the pages back, so that loading a model needs little more
memory than the weights the core keeps. Used by the engine process and the command line.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.errors import CheckpointError

Array = npt.NDArray[Any]
DENSE = {"f32": 4, "f16": 2, "bf16": 2}
BLOCK = 32  # weights a block of the GGUF formats that the core keeps
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20}
ROWS_BYTES = 16 << 20  # of float32 in flight while a tensor is converted


@dataclass(frozen=True)
class Span:
    """The half-open range [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def times(self, factor: int) -> "Span":
        return Span(self.start * factor, self.stop * factor)


class MappedFile:
    """A file mapped read-only. Pages that were read can be given back; they stay in the system's cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_fifo():  # opening it would wait for ever
            raise CheckpointError(f"{path}: is a pipe, not a file")
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    @property
    def buffer(self) -> mmap.mmap | bytes:
        return self._map if self._map is not None else b""

    def view(self, offset: int, count: int, dtype: npt.DTypeLike) -> Array:
        """`count` items of `dtype` at a byte offset, without a copy; read-only."""
        return np.frombuffer(self.buffer, dtype, count, offset)

    def release(self, offset: int, size: int) -> None:
        """Drops this process's pages of a range from memory; reading it again brings them back."""
        if self._map is None:
            return
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, min(offset + size, self.size) - start)


@dataclass(frozen=True)
class TensorRef:
    """One tensor, unread. `name` is ours and `source` the file's; matrices are (outputs, inputs).

    `format` is what the file holds (f32, f16, bf16, q8_0, q4_0, q4_1, or another GGUF type in lower case), `becomes`
    what `read` delivers: the same for those six, bf16 for the rest, and f32 for every vector.
    """

    name: str
    source: str
    file: MappedFile = field(repr=False)
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    format: str
    decode: Callable[[Array], Array] | None = field(default=None, repr=False)  # quantized rows (uint8) to float32
    # Rows of whole heads, from the file's order to ours.
    row_order: Callable[[Array], Array] | None = field(default=None, repr=False)

    @property
    def becomes(self) -> str:
        if len(self.shape) == 1:
            return "f32"
        return self.format if self.format in DENSE or self.format in BLOCK_BYTES else "bf16"

    def read(self) -> Array:
        """The tensor as the core takes it: [n, k] float32, float16 or uint16 (bf16), [n, bytes] uint8, or [n] float32.

        A view of the mapped file where neither its order nor its format changes.
        """
        rows = self._rows()
        if len(self.shape) == 1:
            return np.ascontiguousarray(self._to_float(rows), np.float32).reshape(self.shape)
        if self.becomes == self.format:
            return rows
        out = np.empty(self.shape, np.uint16)
        for start, stop in self._slabs():
            out[start:stop] = to_bf16(self._to_float(rows[start:stop]))
        return out

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The tensor's values as float32, in its own shape."""
        rows = self._rows()
        if len(self.shape) == 1:
            return self.read()
        out = np.empty(self.shape, np.float32)
        for start, stop in self._slabs():
            out[start:stop] = self._to_float(rows[start:stop])
        return out

    def narrowed(self, rows: Span | None, columns: Span | None) -> tuple[Self, Span | None, Span | None]:
        """A tensor that needs less of the file and holds these rows and columns (None = all), and which of its own
        they are."""
        if rows is None or len(self.shape) == 1:
            return self, rows, columns
        row_bytes = self.nbytes // self.shape[0]
        part = replace(
            self,
            offset=self.offset + rows.start * row_bytes,
            nbytes=len(rows) * row_bytes,
            shape=(len(rows), *self.shape[1:]),
        )
        return part, None, columns

    def release(self) -> None:
        """Gives back the file's pages. Views from `read` stay valid: they are read from the file again."""
        self.file.release(self.offset, self.nbytes)

    def _rows(self) -> Array:
        rows = self.shape[0] if len(self.shape) > 1 else 1
        dtype = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}.get(self.format, np.uint8)
        count = self.nbytes // np.dtype(dtype).itemsize
        view = self.file.view(self.offset, count, dtype).reshape(rows, -1)
        if not view.flags.aligned:
            view = view.copy()
        if self.row_order is not None:
            view = self.row_order(view.reshape(self.shape[0], -1)).reshape(rows, -1)
        return view

    def _to_float(self, rows: Array) -> Array:
        if self.format == "f32":
            return rows
        if self.format == "f16":
            return rows.astype(np.float32)
        if self.format == "bf16":
            return from_bf16(rows)
        if self.decode is None:
            raise CheckpointError(f"{self.file.path}: {self.source}: format {self.format} can't be converted")
        return self.decode(rows)

    def _slabs(self) -> Iterator[tuple[int, int]]:
        step = max(1, ROWS_BYTES // (4 * self.shape[1]))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])


def to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """float32 to the bits of bfloat16, rounded to nearest even."""
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def encode_dense(values: Array, dtype: str) -> Array:
    """float32 as a file holds it: float32, float16, or the bits of bf16."""
    return to_bf16(values) if dtype == "bf16" else values.astype({"f32": np.float32, "f16": np.float16}[dtype])


def from_bf16(bits: Array) -> npt.NDArray[np.float32]:
    """The bits of bfloat16 (uint16) to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
