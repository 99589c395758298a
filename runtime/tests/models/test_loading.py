"""What the executor is given: which tensors make a weight, in which form, and that memory stays low."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import FAMILIES, tiny_checkpoint, tiny_gguf

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.inspect import describe_rope, inspect_model
from oarlock_runtime.models.loading import LoadProgress, load_plan, load_weights


class Taken:
    """A stand-in for the executor that remembers what it was given."""

    def __init__(self) -> None:
        self.weights: dict[str, tuple[list[tuple[str, Any]], str]] = {}

    def load(self, name: str, pieces: list[tuple[str, Any]], format: str) -> None:
        for source, array in pieces:
            assert array.flags.c_contiguous and array.flags.aligned
            assert array.dtype == {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}.get(source, np.uint8)
        self.weights[name] = (pieces, format)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_reaches_the_executor_once(tmp_path: Path, family: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path, family, "f16")
    taken, seen = Taken(), []
    load_weights(checkpoint, taken, progress=seen.append)
    spec = checkpoint.spec
    q, _ = taken.weights["layers.2.qkv"]
    assert [piece[1].shape[0] for piece in q] == [spec.heads * spec.head_dim] + [spec.kv_heads * spec.head_dim] * 2
    assert ("layers.0.qkv_bias" in taken.weights) == spec.qkv_bias
    assert ("layers.0.q_norm" in taken.weights) == spec.qk_norm
    assert ("lm_head" in taken.weights) != spec.tied_embeddings
    items = sum(array.size for pieces, _ in taken.weights.values() for _, array in pieces)
    assert items == spec.parameters
    assert seen[-1] == LoadProgress(seen[-1].total, sum(ref.nbytes for ref in checkpoint.refs.values()), seen[-1].name)


def test_biases_are_joined(tmp_path: Path) -> None:
    checkpoint, taken = tiny_checkpoint(tmp_path, "qwen2"), Taken()
    load_weights(checkpoint, taken)
    ((kind, bias),), format = taken.weights["layers.1.qkv_bias"]
    expected = [checkpoint[f"layers.1.{name}_bias"].dequantize() for name in "qkv"]
    assert (kind, format) == ("f32", "f32")
    np.testing.assert_array_equal(bias, np.concatenate(expected))


@pytest.mark.parametrize(
    ("stored", "quantization", "embed", "layer"),
    [
        ("bf16", "auto", ("keep", "bf16"), ("keep", "bf16")),
        ("bf16", "int8", ("int8", "int8"), ("int8", "int8")),
        ("bf16", "int4", ("int8", "int8"), ("int4", "int4")),
        ("f16", "f32", ("f32", "f32"), ("f32", "f32")),
        ("q4_1", "auto", ("keep", "int8_groups"), ("keep", "int4_groups")),
        ("q4_0", "int4", ("int8", "int8"), ("int4", "int4")),
        ("q4_1", "int8", ("int8", "int8"), ("int8", "int8")),
        ("q8_0", "auto", ("keep", "int8_groups"), ("keep", "int8_groups")),
        ("q8_0", "int8", ("int8", "int8"), ("int8", "int8")),
        ("q8_0", "int4", ("int8", "int8"), ("int4", "int4")),
        ("q8_0", "bf16", ("bf16", "bf16"), ("bf16", "bf16")),
    ],
)
def test_what_weights_are_held_as(
    tmp_path: Path, stored: str, quantization: Any, embed: tuple[str, str], layer: tuple[str, str]
) -> None:
    plan = {group.name: group for group in load_plan(tiny_checkpoint(tmp_path, "llama", stored), quantization)}
    assert (plan["embed"].format, plan["embed"].held) == embed
    assert (plan["layers.0.qkv"].format, plan["layers.0.qkv"].held) == layer
    assert plan["layers.0.attn_norm"].held == "f32"


def test_float32_mode_and_odd_rows(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "llama", "bf16", hidden_size=144, head_dim=16)
    plan = {group.name: group for group in load_plan(checkpoint, "int4", "f32")}
    assert plan["layers.0.gate_up"].held == "f32"  # 144 is no multiple of 32
    assert plan["layers.0.down"].held == "int4"
    with pytest.raises(ValueError, match="'int3' is not one of auto"):
        load_plan(checkpoint, "int3")  # type: ignore[arg-type]


def test_a_report_adds_up(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path, "mistral", "q4_1")
    report = inspect_model(path)
    assert report.weight_bytes == sum(row.held_bytes for row in report.rows)
    assert report.file_bytes == sum(row.file_bytes for row in report.rows) == report.weight_bytes
    assert report.step_bytes == report.weight_bytes - next(row for row in report.rows if row.name == "embed").held_bytes
    assert report.kv_bytes(10) == 10 * 2 * 3 * 2 * 64 * 2
    kinds = {row.name: row for row in report.rows}
    assert (kinds["layers.*.gate_up"].count, kinds["layers.*.gate_up"].shape) == (3, (512, 128))
    assert inspect_model(path, "bf16").weight_bytes > 2 * report.weight_bytes
    assert describe_rope(report.spec) == "base 10000"
    scaled = describe_rope(open_checkpoint(tiny_gguf(tmp_path, "llama")).spec)
    assert scaled == "base 10000, scaled by the file's rope_freqs"
