"""The GGUF reader, against the gguf library's, and against damaged files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny import tiny_gguf

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import GGUF_TENSORS, file_name
from oarlock_runtime.models.gguf import halves_from_pairs, pairs_from_halves
from oarlock_runtime.models.gguf_header import read_header
from oarlock_runtime.models.tensors import MappedFile


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_tensors_are_the_librarys(tmp_path: Path, dtype: str) -> None:
    path = tiny_gguf(tmp_path, "qwen2", dtype)
    theirs = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    checkpoint = open_checkpoint(path)
    for name, ref in checkpoint.tensors():
        tensor = theirs[file_name(name, GGUF_TENSORS)]
        expected = dequantize(tensor.data, tensor.tensor_type).reshape(ref.shape)
        np.testing.assert_array_equal(ref.dequantize(), expected)
        if ref.format == ref.becomes and len(ref.shape) == 2:
            assert ref.read().tobytes() == tensor.data.tobytes()
            assert not ref.read().flags.owndata


def test_llama_rows_are_put_back_into_halves_bits_unchanged(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path, "llama", "q4_0")
    stored = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    read = open_checkpoint(path)["layers.1.q"].read()
    head = stored["blk.1.attn_q.weight"][:32]  # of 32 rows: pairs (2 i, 2 i + 1)
    np.testing.assert_array_equal(read[:16], head[0::2])
    np.testing.assert_array_equal(read[16:32], head[1::2])


def test_reordering_and_back_changes_nothing() -> None:
    rows = np.arange(4 * 16 * 3).reshape(64, 3)
    np.testing.assert_array_equal(halves_from_pairs(pairs_from_halves(rows, 16), 16), rows)


def test_the_real_model(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    spec = checkpoint.spec
    assert (spec.family, spec.layers, spec.hidden, spec.heads, spec.kv_heads) == ("llama", 30, 576, 9, 3)
    assert (spec.vocab, spec.max_context, spec.rope.base, spec.tied_embeddings) == (49152, 8192, 100000.0, True)
    formats = {ref.format for _, ref in checkpoint.tensors()}
    assert formats == {"q8_0", "q4_1", "f32"}


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "Q5_0", "IQ4_NL"])
def test_other_formats_become_bf16(tmp_path: Path, kind: str) -> None:
    type_ = GGMLQuantizationType[kind]
    rng = np.random.default_rng(0)

    def replaced(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
        if name != "blk.0.ffn_down.weight":
            return None
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[type_]
        blocks = rng.integers(0, 40, (shape[0], shape[1] // block, size), np.uint8)  # small scales, no NaN
        return blocks.reshape(shape[0], -1)

    path = copied(tiny_gguf(tmp_path, "llama"), tmp_path / "k.gguf", replaced, type_)
    ref = open_checkpoint(path)["layers.0.down"]
    assert (ref.format, ref.becomes) == (kind.lower(), "bf16")
    raw = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "blk.0.ffn_down.weight")
    expected = dequantize(raw.data, type_)
    np.testing.assert_array_equal(ref.dequantize(), expected)
    read = ref.read()
    assert read.dtype == np.uint16
    np.testing.assert_allclose((read.astype(np.uint32) << 16).view(np.float32), expected, rtol=1 / 256)


def test_a_format_nobody_converts_is_refused(tmp_path: Path) -> None:
    def replaced(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
        return np.zeros((shape[0], shape[1] // 256 * 292), np.uint8) if name == "blk.0.ffn_down.weight" else None

    path = copied(tiny_gguf(tmp_path, "llama"), tmp_path / "k.gguf", replaced, GGMLQuantizationType.Q8_K)
    with pytest.raises(CheckpointError, match=r"k\.gguf: blk\.0\.ffn_down\.weight: format Q8_K is not supported"):
        open_checkpoint(path)


def copied(
    source: Path,
    target: Path,
    replaced: Callable[[str, tuple[int, ...]], "np.ndarray[Any, Any] | None"],
    kind: GGMLQuantizationType,
) -> Path:
    """A copy of a GGUF file, some of whose tensors are replaced by blocks of another type."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in reader.tensors:
        data = replaced(tensor.name, tuple(int(size) for size in reversed(tensor.shape)))
        if data is None:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        else:
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("small"), "llama", "q8_0").read_bytes()


def test_truncated_tensors_are_named(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(small[:-100])
    with pytest.raises(
        CheckpointError, match=r"cut\.gguf: \S+\.weight: needs \d+ bytes, but the file has \d+; it is trunc"
    ):
        open_checkpoint(path)


def test_files_of_another_kind_are_refused(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"PK\3\4 no model", b"GGUF", small[:200]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.gguf: "):
            open_checkpoint(path)
    path.write_bytes(small[:4] + struct.pack("<I", 1) + small[8:])
    with pytest.raises(CheckpointError, match="version 1 is not supported"):
        open_checkpoint(path)


def test_unknown_architectures_are_refused_by_name(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0gemma", 1))
    with pytest.raises(
        CheckpointError, match=r"general\.architecture: 'gemma' is not supported; supported are llama, qwen2"
    ):
        open_checkpoint(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_opens_or_is_refused(tmp_path: Path, small: bytes, data: st.DataObject) -> None:
    path = tmp_path / "damaged.gguf"
    content = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, 16000))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(24, len(content)))])
    try:
        checkpoint = open_checkpoint(path)
        header = read_header(MappedFile(path))
    except CheckpointError as error:
        assert "damaged.gguf" in str(error)
    else:
        assert len(list(checkpoint.tensors())) <= len(header.tensors)
