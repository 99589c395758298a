"""start_server's environment: defaults, older names, refusals; and every variable of PaddleNLP's is accepted."""

from pathlib import Path

import pytest

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.paddle.environment import NO_EFFECT, check, with_defaults
from oarlock_runtime.settings import DESCRIPTIONS, Settings, env_names

ROOT = Path(__file__).parents[4]


def load(**environ: str) -> Settings:
    filled = with_defaults(environ)
    check(filled)
    return Settings.load([], filled)


@pytest.mark.conformance(4)
def test_with_nothing_set_the_values_are_the_scripts() -> None:
    settings = load()
    assert (settings.model, settings.max_context, settings.max_output_tokens) == ("/models", 8192, 8192)
    assert (settings.max_sequences, settings.block_bs, settings.block_ratio) == (20, 4, 0.75)
    assert (settings.enc_dec_block_num, settings.max_prefill_batch, settings.queue_limit) == (4, 4, 128)
    assert (settings.port, settings.health_port, settings.metrics_port) == (9965, 8110, 8722)
    assert (settings.server_processes, settings.log_dir, settings.log_to_console) == (4, "log", False)


@pytest.mark.conformance(4)
def test_the_documented_values_can_be_had() -> None:
    filled = with_defaults({"OARLOCK_PADDLE_DEFAULTS": "documented"})
    assert (filled["MP_NUM"], filled["INTER_PROC_PORT"], "OARLOCK_PADDLE_DEFAULTS" in filled) == ("8", "56666", False)
    settings = Settings.load([], filled)
    assert (settings.max_output_tokens, settings.max_sequences, settings.block_bs) == (1024, 50, 50)
    assert (settings.server_processes, settings.queue_limit) == (1, 128)
    with pytest.raises(SettingError, match="documented"):
        with_defaults({"OARLOCK_PADDLE_DEFAULTS": "other"})


@pytest.mark.conformance(3)
@pytest.mark.parametrize(
    ("old", "new", "setting"),
    [
        ("HTTP_PORT", "HEALTH_HTTP_PORT", "health_port"),
        ("METRICS_PORT", "METRICS_HTTP_PORT", "metrics_port"),
        ("PUSH_MODE_HTTP_PORT", "SERVICE_HTTP_PORT", "port"),
    ],
)
def test_the_older_name_of_a_port_wins(old: str, new: str, setting: str) -> None:
    assert getattr(load(**{old: "7001"}), setting) == 7001
    assert getattr(load(**{new: "7002"}), setting) == 7002
    assert getattr(load(**{old: "7001", new: "7002"}), setting) == 7001


@pytest.mark.conformance(3)
@pytest.mark.parametrize("old", ["INTER_QUEUE_PORT", "INFER_QUEUE_PORT"])
def test_an_older_name_keeps_the_newers_default_away(old: str) -> None:
    assert "INTER_PROC_PORT" not in with_defaults({old: "7001"})


@pytest.mark.conformance(5)
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("MP_NUM", "3", "MP_NUM=3 must be a multiple of MP_NNODE=2"),
        ("MP_NUM", "many", "MP_NUM='many' is not an integer"),
        ("BATCH_SIZE", "257", "BATCH_SIZE=257 is out of range: give an integer from 1 to 256"),
        ("BATCH_SIZE", "0", "BATCH_SIZE=0"),
        ("MAX_PREFILL_BATCH", "0", "MAX_PREFILL_BATCH=0"),
        ("PUSH_MODE_HTTP_WORKERS", "0", "PUSH_MODE_HTTP_WORKERS=0"),
        ("RECORD_TIME_INTERVAL", "3600", "below 3600"),
        ("DEVICE", "XPU", "DEVICE='XPU' is unknown"),
    ],
)
def test_what_start_server_does_not_start_with(name: str, text: str, words: str) -> None:
    environ = {"MP_NUM": "2", "MP_NNODE": "2", name: text}
    with pytest.raises(SettingError) as caught:
        load(**environ)
    assert words in str(caught.value)


def test_what_is_warned_of() -> None:
    assert check(with_defaults({"BATCH_SIZE": "128"})) == []
    (warning,) = check(with_defaults({"BATCH_SIZE": "256"}))
    assert "BATCH_SIZE=256 is above 128" in warning
    (warning,) = check(with_defaults({"USE_CACHE_KV_INT8": "1", "SPECULATE_METHOD": "None"}))
    assert "USE_CACHE_KV_INT8=1 is not supported yet" in warning


@pytest.mark.conformance(4)
def test_every_variable_of_paddlenlps_is_on_the_page_and_accepted() -> None:
    page = (ROOT / "docs/paddle.md").read_text()
    known = {name for setting in DESCRIPTIONS for name in env_names(setting) if not name.startswith("OARLOCK_")}
    assert not [name for name in {*known, *NO_EFFECT} if name not in page]
    Settings.load([], {**dict.fromkeys(NO_EFFECT, "1"), "FLAGS_anything": "1", "FLAGS_dec_block_shape_q": "16"})


def test_serve_keeps_its_own_defaults() -> None:
    settings = Settings.load([], {})
    assert (settings.max_sequences, settings.block_bs, settings.server_processes) == (256, 0, 1)
