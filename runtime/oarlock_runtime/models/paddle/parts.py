"""The parameters of a static graph from an open model: PaddleNLP's names, orders, packings and shares of ranks.

Runs in the command line, for `oarlock model export --to paddle`; the inverse of layout.py, and like it without Paddle.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.paddle.layout import BIAS, BIAS_PARTS, MATRICES, SCALE, VECTORS
from oarlock_runtime.models.paddle.packing import UNIT, pack, quantize
from oarlock_runtime.models.paddle.shares import Shares
from oarlock_runtime.models.spec import layer_shapes
from oarlock_runtime.models.tensors import DENSE, Array, TensorRef, encode_dense, from_bf16

EMBED, SHARED_EMBED, NORM = "embedding_0.w_0", "vocab_parallel_embedding_0.w_0", "create_parameter_0.w_0"
QUANT_TYPES = {"": 0, "weight_only_int8": 8, "weight_only_int4": 4}


@dataclass(frozen=True)
class Scheme:
    """What is written: dtype, and how the layers' matrices are quantized.

    dtype "auto" is the source's, or bf16 where that is quantized; others are f32, f16 and bf16.
    """

    dtype: str = "auto"
    quant_type: str = ""
    group: int = -1
    packing: str = "sm75"

    @property
    def bits(self) -> int:
        """Of the layers' matrices: 8, 4, or 0 for dtype's."""
        return QUANT_TYPES[self.quant_type]

    def of(self, checkpoint: Checkpoint) -> str:
        """The type of the matrices, and of the scales of quantized ones."""
        own = checkpoint["layers.0.q"].format
        dtype = self.dtype if self.dtype != "auto" else own if own in DENSE else "bf16"
        if self.bits and dtype == "f32":
            raise CheckpointError(f"{self.quant_type} has scales of 16 bits; give --dtype bf16 or f16")
        return dtype


def dense(ref: TensorRef, dtype: str) -> Array:
    """A tensor's bits in dtype; a vector of "auto" stays what it is."""
    dtype = dtype if dtype != "auto" else ref.format if ref.format in DENSE else "bf16"
    return ref.read() if ref.format == ref.becomes == dtype else encode_dense(ref.dequantize(), dtype)


class Parts:
    """The parameters of every rank of `checkpoint`, made as they are asked for."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, ranks: int) -> None:
        spec = self.spec = checkpoint.spec
        for what, size in (("attention heads", spec.heads), ("feed-forward channels", spec.ffn)):
            if size % ranks:
                raise CheckpointError(f"{checkpoint.path}: {size} {what} can't be shared by {ranks} ranks")
        self.checkpoint = checkpoint
        self.scheme = scheme
        self.ranks = ranks
        self.dtype = scheme.of(checkpoint)
        self.prefix = f"fuse{spec.family}"
        self.vocab_shared = ranks > 1 and spec.vocab % ranks == 0
        self.embed_name = SHARED_EMBED if self.vocab_shared else EMBED
        self.head_name = f"{spec.family}_lm_head_0.w_0"
        self.shares = Shares(spec, ranks, spec.kv_heads % ranks != 0)
        if scheme.bits:
            self._check_units()

    def of_rank(self, rank: int) -> Iterator[tuple[str, Array]]:
        """Name and values: float32, float16, uint16 (bf16), or int8 (codes)."""
        yield self.embed_name, self._along_vocabulary("embed", rank)
        for layer in range(self.spec.layers):
            yield from self._layer(layer, rank)
        yield NORM, self._vector("final_norm")
        if not self.spec.tied_embeddings:
            yield self.head_name, np.ascontiguousarray(self._along_vocabulary("lm_head", rank).T)

    def vocabulary(self, rank: int) -> tuple[int, int]:
        """The first and the last token of a rank's part of the embedding."""
        size = self.spec.vocab // self.ranks if self.vocab_shared else self.spec.vocab
        return (rank * size, (rank + 1) * size) if self.vocab_shared else (0, size)

    def _check_units(self) -> None:
        for matrix in MATRICES:
            outputs, inputs = self.shares.spans(matrix.parts)[-1][2], self.shares.shape(matrix.parts[0])[1]
            if outputs % UNIT or inputs % UNIT:
                raise CheckpointError(
                    f"{self.checkpoint.path}: {matrix.suffix}: {outputs} outputs of {inputs} inputs in each of "
                    f"{self.ranks} ranks are no multiples of {UNIT}, which {self.scheme.quant_type} needs"
                )

    def _along_vocabulary(self, name: str, rank: int) -> Array:
        first, last = self.vocabulary(rank)
        return dense(self.checkpoint[name], self.dtype)[first:last]

    def _vector(self, name: str) -> Array:
        return dense(self.checkpoint[name], self.scheme.dtype)

    def _layer(self, layer: int, rank: int) -> Iterator[tuple[str, Array]]:
        tensors, prefix = f"layers.{layer}.", f"{self.prefix}.{layer}."
        shapes = layer_shapes(self.spec)
        for suffix, part in VECTORS.items():
            if part in shapes:
                yield prefix + suffix, self._vector(tensors + part)
        if self.spec.qkv_bias:
            bias = [self.shares.cut(part, self._vector(tensors + part), rank) for part in BIAS_PARTS]
            yield prefix + BIAS, np.concatenate(bias)
        for matrix in MATRICES:
            refs = [self.checkpoint[tensors + part] for part in matrix.parts]
            cut = [
                self.shares.cut(part, dense(ref, self.dtype), rank)
                for part, ref in zip(matrix.parts, refs, strict=True)
            ]
            rows = cut[0] if len(cut) == 1 else np.concatenate(cut)
            for ref in refs:
                ref.release()
            if not self.scheme.bits:
                yield prefix + matrix.suffix, np.ascontiguousarray(rows.T if matrix.turned else rows)
                continue
            codes, scales = quantize(_floats(rows), self.scheme.bits, self.dtype, self.scheme.group)
            yield prefix + matrix.suffix, pack(codes, self.scheme.bits, self.scheme.packing).view(np.int8)
            yield prefix + matrix.suffix + SCALE, scales if self.dtype == "f16" else scales.view(np.uint16)


def _floats(bits: Array) -> npt.NDArray[np.float32]:
    return from_bf16(bits) if bits.dtype == np.uint16 else bits.astype(np.float32)
