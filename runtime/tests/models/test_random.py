"""Random models: seeded, alike in both containers, sane, with a tokenizer of their own or a borrowed one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reference import Reference
from support.tiny import FAMILIES, tiny_config, tiny_directory, tiny_gguf

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.random import write_random_model
from oarlock_runtime.models.tokenizer import load_tokenizer

IDS = np.random.default_rng(0).integers(0, 512, 80).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_containers_hold_the_same_sane_model(tmp_path: Path, family: str) -> None:
    directory, file = open_checkpoint(tiny_directory(tmp_path, family)), open_checkpoint(tiny_gguf(tmp_path, family))
    for name, ref in directory.tensors():
        np.testing.assert_array_equal(ref.dequantize(), file[name].dequantize())
    reference = Reference.load(directory)
    states = reference.hidden_states(IDS)
    assert all(0.1 < state.std() < 3 for state in states)
    logits = reference.forward(IDS)
    assert 2 < logits.std() < 4
    # llama3's scaling goes through float32 divisors in a GGUF.
    np.testing.assert_allclose(Reference.load(file).forward(IDS), logits, atol=2e-3)
    assert len(set(logits.argmax(axis=1).tolist())) > 10


def test_scaled_rope_survives_a_gguf(tmp_path: Path) -> None:
    for scaling in (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {"rope_type": "linear", "factor": 2.0},
    ):
        made = [
            write(tmp_path / scaling["rope_type"], "qwen2", rope_scaling=scaling)
            for write in (tiny_directory, tiny_gguf)
        ]
        assert open_checkpoint(made[0]).spec.rope == open_checkpoint(made[1]).spec.rope


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    one = tiny_gguf(tmp_path, "llama", seed=1)
    again = tiny_gguf(tmp_path / "again", "llama", seed=1)
    other = tiny_gguf(tmp_path, "llama", seed=2)
    assert one.read_bytes() == again.read_bytes()
    assert one.read_bytes() != other.read_bytes()


def test_quantized_models_stay_close(tmp_path: Path) -> None:
    exact = Reference.load(open_checkpoint(tiny_gguf(tmp_path, "qwen3"))).forward(IDS)
    for dtype, limit in (("q8_0", 0.05), ("q4_1", 0.3), ("q4_0", 0.3)):
        checkpoint = open_checkpoint(tiny_gguf(tmp_path, "qwen3", dtype))
        assert (checkpoint["layers.0.q"].format, checkpoint["embed"].format) == (dtype, "q8_0")
        assert (Reference.load(checkpoint).forward(IDS) - exact).std() < limit * exact.std()


def test_a_borrowed_tokenizer(tmp_path: Path, smollm2: Path) -> None:
    config = tiny_config("qwen2", vocab_size=49200)
    file, directory, copy = tmp_path / "a.gguf", tmp_path / "b", tmp_path / "c"
    write_random_model(config, file, "gguf", dtype="q8_0", tokenizer=smollm2)
    write_random_model(config, directory, "safetensors", tokenizer=file)
    write_random_model(config, copy, "safetensors", tokenizer=directory)
    lender = load_tokenizer(smollm2)
    for path in (file, directory, copy):
        tokenizer = load_tokenizer(path)
        assert tokenizer.encode("Don't stop at 1234!") == lender.encode("Don't stop at 1234!")
        assert tokenizer.render_chat([{"role": "user", "content": "x"}])
        assert open_checkpoint(path).spec.vocab == 49200
    assert 2 in open_checkpoint(directory).spec.eos_ids
    with pytest.raises(CheckpointError, match="the tokenizer has 49152 tokens; the model's vocab_size is 512"):
        write_random_model(tiny_config("qwen2"), tmp_path / "d", "safetensors", tokenizer=smollm2)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("container", "options", "problem"),
    [
        ("onnx", {}, "container 'onnx' is not gguf or safetensors"),
        ("safetensors", {"dtype": "q8_0"}, "dtype 'q8_0' is not one of f32, f16, bf16, which safetensors can hold"),
        ("gguf", {"dtype": "q3"}, "dtype 'q3' is not one of .*q4_1, which gguf can hold"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, container: str, options: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        write_random_model(tiny_config("llama"), tmp_path / "out", container, **options)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tiny_gguf(tmp_path, "llama")
    with pytest.raises(CheckpointError, match="exists already"):
        write_random_model(tiny_config("llama"), out, "gguf")
    with pytest.raises(CheckpointError, match="vocab_size: 100 is too small for a tokenizer; the least is 259"):
        write_random_model(tiny_config("llama", vocab_size=100), tmp_path / "x.gguf", "gguf")
