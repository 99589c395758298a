"""Specs from configurations, and the rotary table that follows from them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import FAMILIES, tiny_config

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import GGUF_TENSORS, HF_TENSORS, canonical_name, file_name, spec_from_config
from oarlock_runtime.models.presets import PRESETS, read_config
from oarlock_runtime.models.spec import ModelSpec, RopeSpec, rotary_frequencies, rotary_table, tensor_shapes


def spec_of(family: str = "llama", **changes: Any) -> ModelSpec:
    return spec_from_config(tiny_config(family, **changes))[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_spec(preset: str) -> None:
    _, spec = spec_from_config(read_config(preset))
    assert preset.removeprefix("tiny-").startswith(("llama", "smollm", "mistral", "qwen"))
    assert spec.family in FAMILIES


def test_known_parameter_counts() -> None:
    assert spec_from_config(read_config("llama-8b"))[1].parameters == 8_030_261_248
    assert spec_from_config(read_config("llama-1.1b"))[1].parameters == 1_100_048_384
    assert spec_from_config(read_config("qwen2.5-0.5b"))[1].parameters == 494_032_768
    assert spec_from_config(read_config("qwen3-0.6b"))[1].parameters == 596_049_920


@pytest.mark.parametrize("table", [HF_TENSORS, GGUF_TENSORS])
@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_names_go_both_ways(family: str, table: dict[str, str]) -> None:
    for name in tensor_shapes(spec_of(family)):
        assert canonical_name(file_name(name, table), table) == name
    assert canonical_name("model.layers.0.self_attn.o_proj.bias", table) is None


def test_the_rotary_table_is_cosines_then_sines() -> None:
    spec = replace(spec_of("qwen2"), head_dim=4, rope=RopeSpec(base=100.0))
    table = rotary_table(spec, 3)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[2], [math.cos(2), math.cos(0.2), math.sin(2), math.sin(0.2)], rtol=1e-6)


def test_linear_scaling_slows_every_frequency() -> None:
    spec = spec_of(rope_scaling={"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(rotary_frequencies(spec) * 4, rotary_frequencies(replace(spec, rope=RopeSpec())))


def test_llama3_scaling_keeps_high_and_slows_low_frequencies() -> None:
    spec = spec_from_config(read_config("llama-8b"))[1]
    plain = rotary_frequencies(replace(spec, rope=RopeSpec(base=500000.0)))
    ratio = rotary_frequencies(spec) / plain
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1.0)
    np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 8)
    between = (wavelength > 8192 / 4) & (wavelength < 8192)
    smooth = (8192 / wavelength[between] - 1) / 3
    np.testing.assert_allclose(ratio[between], (1 - smooth) / 8 + smooth)


def test_yarn_scaling_keeps_fast_pairs_slows_slow_ones_and_sharpens() -> None:
    section = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    spec = spec_of("qwen2", rope_scaling=section, rope_theta=1e6, head_dim=128)
    ratio = rotary_frequencies(spec) / 1e6 ** -(np.arange(64) / 64)
    # 32 turns and 1 turn over 32,768 tokens lie at pairs 23.6 and 39.6, widened to 23 and 40.
    np.testing.assert_allclose(ratio[:24], 1.0)
    np.testing.assert_allclose(ratio[40:], 0.25)
    np.testing.assert_allclose(ratio[30], 1 - 7 / 17 * 0.75)
    assert spec.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    np.testing.assert_allclose(rotary_table(spec, 1)[0, :64], spec.rope.attention_factor, rtol=1e-6)


def test_newer_files_keep_rope_in_one_section() -> None:
    spec = spec_of("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    assert spec.rope == RopeSpec(base=5e6)


@pytest.mark.parametrize(
    ("family", "changes", "window"),
    [
        ("mistral", {}, 48),
        ("mistral", {"sliding_window": None}, 0),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 32}, 0),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}, 32),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 3}, 0),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention"] * 3}, 9),
    ],
)
def test_sliding_windows(family: str, changes: dict[str, Any], window: int) -> None:
    assert spec_of(family, **changes).sliding_window == window


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        (
            "llama",
            {"architectures": ["GemmaForCausalLM"]},
            "architectures: GemmaForCausalLM is not supported.*LlamaFor",
        ),
        ("llama", {"architectures": None, "model_type": "gpt2"}, "model_type: 'gpt2' is not supported.*qwen3"),
        ("llama", {"hidden_size": "128"}, "hidden_size: '128' is not an integer"),
        ("llama", {"hidden_size": None}, "hidden_size: missing"),
        ("llama", {"hidden_size": True}, "hidden_size: True is not an integer"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers: 0 is not between"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ("llama", {"head_dim": None, "num_attention_heads": 3}, "num_attention_heads: 3 does not divide"),
        ("llama", {"head_dim": 33}, "head_dim: 33 is odd"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps: nan is not a finite number"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        ("llama", {"attention_bias": True}, "attention_bias: true is not supported"),
        ("llama", {"sliding_window": 128}, "sliding_window: 128 is not expected"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.type: 'dynamic' is not supp.*yarn",
        ),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor: missing"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling: 'linear' is not an object"),
        ("llama", {"eos_token_id": "2"}, "eos_token_id: '2' is not a token id"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings: 1 is not true or false"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "max_window_layers: 2 of 3",
        ),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, "layer_types: 1 of 3"),
        ("mistral", {"layer_types": ["chunked"] * 3}, "layer_types: 'chunked' is not"),
    ],
)
def test_what_cannot_be_run_is_refused_by_field(family: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"^tiny-{family}: {problem}"):
        spec_of(family, **changes)


def test_a_config_is_a_preset_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    for place in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(CheckpointError, match=r"config\.json: holds list, not a JSON object"):
            read_config(str(place))
    with pytest.raises(CheckpointError, match="no-such: is neither a file nor a preset; presets are tiny-llama"):
        read_config("no-such")
