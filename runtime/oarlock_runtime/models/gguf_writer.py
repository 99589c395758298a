"""Writes a GGUF file of a spec, tensor by tensor, through the gguf library. Runs in the command line."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import GGUF_TENSORS, file_name
from oarlock_runtime.models.spec import ModelSpec, RopeSpec, rotary_frequencies, tensor_shapes
from oarlock_runtime.models.tensors import BLOCK, BLOCK_BYTES, Array, to_bf16

ROPE_TENSOR = "rope_freqs.weight"


def encode(rows: npt.NDArray[np.float32], dtype: str) -> Array:
    """float32 rows as a file holds them: f32, f16, bf16 (uint16), or uint8 rows of q8_0, q4_0 or q4_1 blocks."""
    if dtype == "f32":
        return rows
    if dtype == "f16":
        return rows.astype(np.float16)
    if dtype == "bf16":
        return to_bf16(rows)
    return quantize(rows, GGMLQuantizationType[dtype.upper()])


class GgufFileWriter:
    """A GGUF file being written: the header at once, then every tensor of the spec in its order.

    `tokenizer` holds the header's tokenizer.* values. A matrix is stored as `dtype`, but the embedding and the head as
    q8_0 beside 4-bit layers, and rows that can't be cut into blocks as bf16. Leaving the context with an error removes
    the file.
    """

    def __init__(self, path: Path, architecture: str, spec: ModelSpec, tokenizer: dict[str, Any], dtype: str) -> None:
        self.path = path
        self._spec = spec
        self._dtype = dtype
        self._writer = GGUFWriter(path, architecture)
        self._add_shapes(architecture)
        for key, value in tokenizer.items():
            self._add_value(key, value)
        divisors = self._divisors(spec.rope)
        if divisors is not None:
            self._add_tensor(ROPE_TENSOR, divisors.shape, "f32")
        for name, shape in tensor_shapes(spec).items():
            self._add_tensor(file_name(name, GGUF_TENSORS), shape, self.dtype_of(name))
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()
        if divisors is not None:
            self.write(divisors)

    def dtype_of(self, name: str) -> str:
        """What the tensor of a canonical name is stored as."""
        shape = tensor_shapes(self._spec)[name]
        if len(shape) == 1:
            return "f32"
        if self._dtype in BLOCK_BYTES and shape[1] % BLOCK:
            return "bf16"
        return "q8_0" if self._dtype in BLOCK_BYTES and name in ("embed", "lm_head") else self._dtype

    def write(self, rows: Array) -> None:
        """The next tensor's encoded rows."""
        self._writer.write_tensor_data(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is not None:
            self.path.unlink(missing_ok=True)

    def _add_shapes(self, architecture: str) -> None:
        spec, writer = self._spec, self._writer
        writer.add_name(f"random {spec.family}")
        writer.add_context_length(spec.max_context)
        writer.add_embedding_length(spec.hidden)
        writer.add_block_count(spec.layers)
        writer.add_feed_forward_length(spec.ffn)
        writer.add_head_count(spec.heads)
        writer.add_head_count_kv(spec.kv_heads)
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
        writer.add_rope_dimension_count(spec.head_dim)
        writer.add_rope_freq_base(spec.rope.base)
        writer.add_layer_norm_rms_eps(spec.norm_epsilon)
        writer.add_vocab_size(spec.vocab)
        if spec.sliding_window:
            writer.add_sliding_window(spec.sliding_window)
        rope = spec.rope
        if rope.scaling in ("linear", "yarn"):
            self._add_value(f"{architecture}.rope.scaling.type", rope.scaling)
            self._add_value(f"{architecture}.rope.scaling.factor", rope.factor)
        if rope.scaling == "yarn":
            if rope.attention_factor != RopeSpec.yarn_attention_factor(rope.factor):
                raise CheckpointError(f"{self.path}: this attention_factor can't be written into a GGUF")
            self._add_value(f"{architecture}.rope.scaling.original_context_length", rope.original_context)
            self._add_value(f"{architecture}.rope.scaling.yarn_beta_fast", rope.beta_fast)
            self._add_value(f"{architecture}.rope.scaling.yarn_beta_slow", rope.beta_slow)

    def _divisors(self, rope: RopeSpec) -> npt.NDArray[np.float32] | None:
        """llama3 scaling as a GGUF carries it: what each frequency is divided by."""
        if rope.scaling not in ("llama3", "divisors"):
            return None
        pair = np.arange(self._spec.head_dim // 2)
        plain = rope.base ** (-2.0 * pair / self._spec.head_dim)
        return np.asarray(plain / rotary_frequencies(self._spec), np.float32)

    def _add_tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        kind = GGMLQuantizationType[dtype.upper()]
        block = dtype in BLOCK_BYTES
        stored = quant_shape_to_byte_shape(shape, kind) if block else shape
        items = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}.get(dtype, np.uint8)
        nbytes = int(np.prod(stored)) * np.dtype(items).itemsize
        self._writer.add_tensor_info(name, stored, np.dtype(items), nbytes, kind)

    def _add_value(self, key: str, value: Any) -> None:
        scalars = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
        scalars[str] = GGUFValueType.STRING
        if not isinstance(value, list):
            self._writer.add_key_value(key, value, scalars[type(value)])
        elif value:
            item = GGUFValueType.INT32 if type(value[0]) is int else scalars[type(value[0])]
            self._writer.add_key_value(key, value, GGUFValueType.ARRAY, item)
