"""The safetensors reader and what makes a checkpoint complete."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny import FAMILIES, tiny_directory, tiny_gguf

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import HF_TENSORS, file_name


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_the_librarys(tmp_path: Path, family: str) -> None:
    directory = tiny_directory(tmp_path, family, "f16")
    theirs = load_file(directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    assert checkpoint.spec.family == family
    assert len(list(checkpoint.tensors())) == len(theirs)
    for name, ref in checkpoint.tensors():
        read = ref.read()
        np.testing.assert_array_equal(read, theirs[file_name(name, HF_TENSORS)])
        assert read.dtype == (np.float16 if len(ref.shape) == 2 else np.float32)


def test_bf16_is_a_view_of_the_file(tmp_path: Path) -> None:
    exact = open_checkpoint(tiny_directory(tmp_path, "llama", "f32"))["layers.0.q"]
    ref = open_checkpoint(tiny_directory(tmp_path, "llama", "bf16"))["layers.0.q"]
    view = ref.read()
    assert view.dtype == np.uint16 and not view.flags.owndata and not view.flags.writeable
    np.testing.assert_allclose(ref.dequantize(), exact.dequantize(), rtol=1 / 256)
    ref.release()
    np.testing.assert_array_equal(view, ref.read())


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path, "qwen3")
    whole = load_file(directory / "model.safetensors")
    expected = {name: ref.dequantize() for name, ref in open_checkpoint(directory).tensors()}
    split(directory, whole)
    checkpoint = open_checkpoint(directory)
    for name, ref in checkpoint.tensors():
        np.testing.assert_array_equal(ref.dequantize(), expected[name])
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002\.safetensors: is listed in .*index\.json but missing"
    ):
        open_checkpoint(directory)


def split(directory: Path, tensors: dict[str, Any]) -> None:
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        table |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_a_tied_head_in_the_file_is_left_alone(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path, "llama")
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, directory / "model.safetensors")
    assert "lm_head" not in open_checkpoint(directory).refs


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model.norm.weight": None}, "tensor model.norm.weight is missing"),
        ({"model.norm.weight": np.zeros(7, np.float32)}, r"model.norm.weight: shape \[7\], expected \[128\]"),
        ({"model.norm.weight": np.zeros(128, np.int32)}, "model.norm.weight: dtype I32 is not supported"),
        ({"model.layers.0.self_attn.o_proj.bias": np.zeros(128, np.float32)}, "o_proj.bias: llama models have no such"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(128, np.float32)}, "q_proj.bias: this model's config"),
        (
            {"model.layers.9.mlp.up_proj.weight": np.zeros((2, 2), np.float32)},
            "layers.9.mlp.up_proj.weight: this model's",
        ),
    ],
)
def test_what_does_not_fit_the_config_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    directory = tiny_directory(tmp_path, "llama")
    tensors = load_file(directory / "model.safetensors") | change
    save_file({name: value for name, value in tensors.items() if value is not None}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(directory)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path, "llama")
    file = directory / "model.safetensors"
    good = file.read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    for content, problem in [
        (b"", "not a safetensors file"),
        (good[:100], "header claims"),
        (struct.pack("<Q", 4) + b"{{{{", "header is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "header is not a JSON object"),
        (good[:-10], r"\S+: needs \d+ bytes, but the file has \d+; it is truncated"),
        (good[: 8 + length].replace(b'"shape"', b'"shope"', 1) + good[8 + length :], "its header entry is malformed"),
    ]:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{problem}|model\.safetensors: {problem}"):
            open_checkpoint(directory)


def test_where_a_model_lies(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"has neither config\.json .* nor a \.gguf file"):
        open_checkpoint(tmp_path)
    tiny_gguf(tmp_path, "llama", seed=1)
    assert open_checkpoint(str(tmp_path)).container == "gguf"
    tiny_gguf(tmp_path, "llama", seed=2)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files; name one: llama-f32-1\.gguf, llama-f32-2\.gguf"):
        open_checkpoint(tmp_path)
    directory = tiny_directory(tmp_path, "llama")
    with pytest.raises(CheckpointError, match="give the directory that holds it"):
        open_checkpoint(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        open_checkpoint(directory)
