"""The keys of an exported model's config.json, over the environment."""

import json
from pathlib import Path
from typing import Any

import pytest

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.model_load import context_of
from oarlock_runtime.server.paddle.config_keys import applied, read_config
from oarlock_runtime.settings import Settings

EXPORT = {
    "infer_model_max_seq_len": 4096,
    "infer_model_block_size": 64,
    "infer_model_dtype": "bfloat16",
    "infer_model_cachekv_int8_type": None,
    "paddlenlp_version": "3.0.0.b4.post1",
}


def apply(config: dict[str, Any], flags: list[str] | None = None, **environ: str) -> tuple[Settings, list[str]]:
    return applied(Settings.load(flags or [], environ), config, environ)


@pytest.mark.conformance(6)
def test_the_keys_win_over_the_environment() -> None:
    settings, warnings = apply(EXPORT, DTYPE="float32", BLOCK_SIZE="128", tag="3.0.0.b4")
    assert (settings.max_context, settings.block_size, settings.dtype, warnings) == (4096, 64, "bf16", [])


@pytest.mark.conformance(6)
def test_limits_are_clamped_with_a_warning() -> None:
    settings, warnings = apply(EXPORT, MAX_SEQ_LEN="8192", MAX_DEC_LEN="8192")
    assert (settings.max_context, settings.max_prompt_tokens, settings.max_output_tokens) == (4096, 0, 4096)
    assert [warning.partition("=")[0] for warning in warnings] == ["MAX_SEQ_LEN", "MAX_DEC_LEN"]


@pytest.mark.conformance(6)
def test_a_lower_max_seq_len_bounds_prompts_alone() -> None:
    settings, warnings = apply(EXPORT, MAX_SEQ_LEN="1024", MAX_DEC_LEN="512")
    assert (settings.max_context, settings.max_prompt_tokens, settings.max_output_tokens) == (4096, 1024, 512)
    assert not warnings
    settings, _ = apply(EXPORT, ["--max-context", "1024"])
    assert (settings.max_context, settings.max_prompt_tokens) == (1024, 0)


@pytest.mark.conformance(6)
def test_absent_keys_change_nothing(tmp_path: Path) -> None:
    assert apply({}) == (Settings(), [])
    settings = Settings(model=str(tmp_path))
    assert read_config(settings) == {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_config(settings) == {}
    (tmp_path / "config.json").write_text(json.dumps({"infer_model_dtype": "bfloat16"}))
    assert applied(settings, read_config(settings), {})[0].dtype == "bf16"


@pytest.mark.conformance(6)
def test_the_models_own_length_undercuts_the_environments() -> None:
    by_paddle = Settings.load([], {"MAX_SEQ_LEN": "8192"})
    assert [context_of(by_paddle, longest) for longest in (512, 32768)] == [512, 8192]
    assert context_of(applied(Settings(), EXPORT, {})[0], 512) == 512
    assert context_of(Settings(max_context=8192), 512) == 8192  # a flag means what it says; the engine refuses it
    assert context_of(Settings(), 512) == 512


def test_what_is_not_there_yet_is_warned_of() -> None:
    more = {"infer_model_cachekv_int8_type": "static", "speculate_method": "mtp", "infer_model_dtype": "float16"}
    settings, warnings = apply(EXPORT | more, tag="2.9")
    assert len(warnings) == 4 and settings.dtype == "bf16"


@pytest.mark.parametrize("key", ["infer_model_max_seq_len", "infer_model_block_size", "infer_model_dtype"])
def test_a_key_of_the_wrong_type_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=key):
        apply(EXPORT | {key: ["x"]})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingError, match=r"config\.json: not valid JSON"):
        read_config(Settings(model=str(tmp_path)))
