"""From a checkpoint to the compiled executor: which tensors make one weight, and as what it is held.

Runs in the engine process. Tensors are read and handed over one weight at a time, and their file's pages given back, so
that loading needs little more memory than the weights the core keeps. `oarlock model inspect` shows the same plan.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.sharding import Shard
from oarlock_runtime.models.spec import ModelSpec
from oarlock_runtime.models.tensors import BLOCK, BLOCK_BYTES, Span, TensorRef, to_bf16

Quantization = Literal["auto", "f32", "bf16", "int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

# Bytes that the core needs for 32 weights, in each form that it holds but those in spans.
HELD_BYTES = {"f32": 4 * BLOCK, "bf16": 2 * BLOCK, "f16": 2 * BLOCK, "int8_groups": 34, "int4_groups": 20}
# Columns; a row of int8 or int4 weights is held in whole tiles, up to MOST_SPAN of them, a span, under a float32 scale.
TILE = 64
MOST_SPAN = 9
TILE_BYTES = {"int8": 64, "int4": 36}  # of a row; int4 has two bytes for each 32 columns beside their codes


class WeightSink(Protocol):
    """What takes the weights: the compiled executor, as far as loading needs it."""

    def load(self, name: str, pieces: list[tuple[str, npt.NDArray[Any]]], format: str) -> None: ...


@dataclass(frozen=True)
class LoadProgress:
    """How far loading has come: bytes of the checkpoint read, of all, and the weight just taken."""

    done: int
    total: int
    name: str


@dataclass(frozen=True)
class Part:
    """What is taken of a tensor: these rows and columns of `ref`, None for all."""

    ref: TensorRef
    rows: Span | None
    columns: Span | None

    @classmethod
    def of(cls, ref: TensorRef, shard: Shard | None) -> Self:
        """A rank's part of the model's tensor, or all of it; of its files only what the part needs."""
        if shard is None:
            return cls(ref, None, None)
        name = ref.name.rpartition(".")[2]
        return cls(*ref.narrowed(shard.rows(name), shard.columns(name)))

    @property
    def shape(self) -> tuple[int, ...]:
        height = self.ref.shape[0] if self.rows is None else len(self.rows)
        return (height, *self.ref.shape[1:]) if self.columns is None else (height, len(self.columns))

    @property
    def becomes(self) -> str:
        """What the core is given: a tensor whose blocks the cut would break is expanded first."""
        cut = self.columns
        whole = cut is None or (cut.start % BLOCK == 0 and cut.stop % BLOCK == 0)
        return self.ref.becomes if whole or self.ref.becomes not in BLOCK_BYTES else "bf16"

    def vector(self) -> npt.NDArray[np.float32]:
        values = self.ref.read()
        return values if self.rows is None else values[self.rows.start : self.rows.stop]

    def matrix(self) -> tuple[str, npt.NDArray[Any]]:
        """Format and array."""
        ref, rows, columns, becomes = self.ref, self.rows, self.columns, self.becomes
        array = ref.read() if becomes == ref.becomes else to_bf16(ref.dequantize())
        if rows is not None:
            array = array[rows.start : rows.stop]
        if columns is not None:
            block = BLOCK_BYTES.get(becomes)
            if block is not None:  # a row is bytes
                columns = Span(columns.start // BLOCK * block, columns.stop // BLOCK * block)
            array = array[:, columns.start : columns.stop]
        return becomes, array if rows is None and columns is None else np.ascontiguousarray(array)


@dataclass(frozen=True)
class WeightGroup:
    """Tensors, or a rank's parts of them, that the core takes as one weight, stacked along their output rows.

    `format` is what the executor is asked for ("keep" = the file's own bits), `held` what that comes to: f32, bf16,
    f16, int8, int4 (both as --quantization makes them), int8_groups or int4_groups (a file's own bits: q8_0's; q4_0's
    and q4_1's). A GPU expands what it keeps to its compute type.
    """

    name: str
    parts: tuple[Part, ...]
    format: str
    held: str

    @property
    def is_vector(self) -> bool:
        return len(self.parts[0].shape) == 1

    @property
    def file_bytes(self) -> int:
        """Bytes of the checkpoint that it is made of."""
        return sum(part.ref.nbytes for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes the core will hold for it."""
        if self.held in TILE_BYTES:
            return sum(part.shape[0] * span_row_bytes(self.held, part.shape[1]) for part in self.parts)
        return sum(math.prod(part.shape) for part in self.parts) * HELD_BYTES[self.held] // BLOCK

    def pieces(self) -> list[tuple[str, npt.NDArray[Any]]]:
        """What the executor's load takes. Vectors are joined into one float32 piece."""
        if self.is_vector:
            return [("f32", np.concatenate([part.vector() for part in self.parts]))]
        return [part.matrix() for part in self.parts]


def span_row_bytes(held: str, columns: int) -> int:
    """Bytes of a row of int8 or int4 weights, with its scales."""
    tiles = -(-columns // TILE)
    return tiles * TILE_BYTES[held] + 4 * -(-tiles // span_tiles(columns))


def span_tiles(columns: int) -> int:
    """Tiles of a row that share a scale: as even as the row allows, the last span may have fewer."""
    tiles = -(-columns // TILE)
    return -(-tiles // -(-tiles // MOST_SPAN))


def load_plan(
    checkpoint: Checkpoint, quantization: Quantization = "auto", dtype: str = "bf16", shard: Shard | None = None
) -> list[WeightGroup]:
    """The weights the executor takes, in order, and as what each is held; of one rank's `shard`, or of the whole model.

    quantization "auto" keeps a GGUF's own 8 and 4 bits and holds all else in `dtype`, the executor's compute type
    (bf16, f16 or f32). int8 and int4 are made from whatever the file has, be it of as many bits itself: a file's own
    groups are slower. Both leave what can't be cut into groups of 32 in `dtype`.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization {quantization!r} is not one of {', '.join(QUANTIZATIONS)}")
    groups = []
    for name, tensors in _group_names(checkpoint.spec):
        parts = tuple(Part.of(checkpoint[tensor], shard) for tensor in tensors)
        groups.append(WeightGroup(name, parts, *_format_of(name, parts, quantization, dtype)))
    return groups


def load_weights(
    checkpoint: Checkpoint,
    executor: WeightSink,
    quantization: Quantization = "auto",
    dtype: str = "bf16",
    progress: Callable[[LoadProgress], None] | None = None,
    shard: Shard | None = None,
) -> None:
    """Hands every weight, or this rank's part of it, to `executor`, whose ValueError and RuntimeError pass through."""
    plan = load_plan(checkpoint, quantization, dtype, shard)
    total = sum(group.file_bytes for group in plan)
    done = 0
    for group in plan:
        executor.load(group.name, group.pieces(), group.format)
        done += group.file_bytes
        for part in group.parts:
            part.ref.release()
        if progress is not None:
            progress(LoadProgress(done, total, group.name))


def _group_names(spec: ModelSpec) -> Iterator[tuple[str, list[str]]]:
    """Names of the executor's weights and of the tensors each is made of."""
    layer_groups = [("attn_norm", ["attn_norm"]), ("qkv", ["q", "k", "v"])]
    if spec.qkv_bias:
        layer_groups.append(("qkv_bias", ["q_bias", "k_bias", "v_bias"]))
    if spec.qk_norm:
        layer_groups += [("q_norm", ["q_norm"]), ("k_norm", ["k_norm"])]
    layer_groups += [("o", ["o"]), ("ffn_norm", ["ffn_norm"]), ("gate_up", ["gate", "up"]), ("down", ["down"])]
    yield "embed", ["embed"]
    for layer in range(spec.layers):
        for group, parts in layer_groups:
            yield f"layers.{layer}.{group}", [f"layers.{layer}.{part}" for part in parts]
    yield "final_norm", ["final_norm"]
    if not spec.tied_embeddings:
        yield "lm_head", ["lm_head"]


def _format_of(name: str, parts: tuple[Part, ...], quantization: str, dtype: str) -> tuple[str, str]:
    """The format to ask of the executor, and what it comes to."""
    if len(parts[0].shape) == 1:
        return "f32", "f32"
    formats = {part.becomes for part in parts}
    own = None
    if formats <= BLOCK_BYTES.keys():
        # The core holds pieces of one weight in the widest form that any of them needs.
        own = "int8_groups" if "q8_0" in formats else "int4_groups"
    if quantization == "auto":
        return "keep", own or dtype
    if quantization in ("f32", "bf16"):
        return quantization, quantization
    if parts[0].shape[1] % BLOCK:
        return dtype, dtype
    # The head decides between near-equal tokens, so it is given no less than 8 bits; so is what it may be tied to.
    wanted = "int8" if name in ("embed", "lm_head") else quantization
    return wanted, wanted
