"""Reader of GGUF checkpoints: memory-mapped, lazy, with the bits of Q8_0, Q4_0 and Q4_1 kept.

Used by the engine process and the command line. Other quantized types are converted by the gguf library.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import GGUF_TENSORS, IGNORED, canonical_name, spec_from_gguf
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.gguf_header import GgufHeader, TensorEntry, read_header
from oarlock_runtime.models.tensors import BLOCK, BLOCK_BYTES, DENSE, Array, MappedFile, TensorRef

# GGML's numbers of the types that the core takes as they are.
KEPT = {0: "f32", 1: "f16", 30: "bf16", 8: "q8_0", 2: "q4_0", 3: "q4_1"}


class GgufFile:
    """An open GGUF file: its header, spec and tensors by our names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self.header: GgufHeader = read_header(self._file)
        self.fields = Fields(path, self.header.values)
        if self.fields.integer("split.count", 1, low=0) > 1:
            raise self.fields.error("split.count", "a GGUF in several files is not supported; merge it into one first")
        entries = {entry.name: entry for entry in self.header.tensors}
        embedding = entries.get("token_embd.weight")
        if embedding is None:
            self.fields.text("general.architecture")
            raise CheckpointError(f"{path}: tensor token_embd.weight is missing; this is not a decoder's checkpoint")
        divisors = entries.get("rope_freqs.weight")
        self.family, self.spec = spec_from_gguf(
            self.fields,
            vocab=embedding.shape[0],
            divisors=tuple(self._ref(divisors, divisors.name).read().tolist()) if divisors else (),
            tied="output.weight" not in entries,
            qkv_bias="blk.0.attn_q.bias" in entries,
        )

    def refs(self) -> dict[str, TensorRef]:
        """The tensors by canonical name, in the file's order."""
        refs = {}
        for entry in self.header.tensors:
            if IGNORED.fullmatch(entry.name):
                continue
            name = canonical_name(entry.name, GGUF_TENSORS)
            if name is None:
                raise CheckpointError(f"{self.path}: {entry.name}: {self.family.name} models have no such tensor")
            refs[name] = self._ref(entry, name, self._row_order(name))
        return refs

    def _row_order(self, name: str) -> Callable[[Array], Array] | None:
        leaf = name.rpartition(".")[2]
        if not self.family.gguf_paired_rope or leaf not in ("q", "k", "q_bias", "k_bias"):
            return None
        return partial(halves_from_pairs, head_dim=self.spec.head_dim)

    def _ref(self, entry: TensorEntry, name: str, order: Callable[[Array], Array] | None = None) -> TensorRef:
        kind, nbytes, decode = _storage(self.path, entry)
        if entry.offset + nbytes > self._file.size:
            raise CheckpointError(
                f"{self.path}: {entry.name}: needs {entry.offset + nbytes} bytes, but the file has "
                f"{self._file.size}; it is truncated"
            )
        return TensorRef(name, entry.name, self._file, entry.offset, nbytes, entry.shape, kind, decode, order)


def halves_from_pairs(rows: Array, head_dim: int) -> Array:
    """Reorders the rows of q or k, [heads * head_dim, width], from paired neighbours to paired halves. A copy."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def pairs_from_halves(rows: Array, head_dim: int) -> Array:
    """The inverse of halves_from_pairs: how a llama GGUF wants its q and k."""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _storage(path: Path, entry: TensorEntry) -> tuple[str, int, "partial[Array] | None"]:
    """A tensor's format, its bytes, and how to convert it unless it is dense."""
    kind = KEPT.get(entry.type)
    items, width = math.prod(entry.shape), entry.shape[-1]
    if kind in DENSE:
        return kind, items * DENSE[kind], None
    if kind is not None:
        name, block, block_bytes = kind, BLOCK, BLOCK_BYTES[kind]
    else:
        name, block, block_bytes = _library_type(path, entry)
    if width % block:
        raise CheckpointError(f"{path}: {entry.name}: {name} needs rows of a multiple of {block}, not {width}")
    return name, items // block * block_bytes, partial(_dequantize, type_number=entry.type)


def _library_type(path: Path, entry: TensorEntry) -> tuple[str, int, int]:
    """Name, items and bytes a block of a type that only the gguf library knows."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        known = GGMLQuantizationType(entry.type)
    except ValueError:
        raise CheckpointError(f"{path}: {entry.name}: unknown GGML type number {entry.type}") from None
    block, block_bytes = GGML_QUANT_SIZES[known]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), known)
    except NotImplementedError:
        raise CheckpointError(f"{path}: {entry.name}: format {known.name} is not supported") from None
    return known.name.lower(), block, block_bytes


def _dequantize(rows: Array, type_number: int) -> npt.NDArray[np.float32]:
    """uint8 rows of whole blocks to float32."""
    # The library takes a third of a second to import, and most models don't need it.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(rows, GGMLQuantizationType(type_number))
