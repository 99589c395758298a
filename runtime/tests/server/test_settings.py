"""Settings: where values come from, what is refused, and what the messages offer."""

import pytest

from oarlock_runtime.errors import SettingError
from oarlock_runtime.settings import DESCRIPTIONS, Settings, env_names, flag_of, help_text


def load(*flags: str, **environ: str) -> Settings:
    return Settings.load(flags, environ)


def test_a_flag_wins_over_our_variable_over_paddlenlps_over_the_default() -> None:
    assert load().port == 9965
    assert load(SERVICE_HTTP_PORT="1").port == 1
    assert load(SERVICE_HTTP_PORT="1", PUSH_MODE_HTTP_PORT="2").port == 2
    assert load(SERVICE_HTTP_PORT="1", OARLOCK_PORT="3").port == 3
    settings = load("--port", "4", OARLOCK_PORT="3")
    assert (settings.port, settings.sources["port"]) == (4, "--port")


def test_flags_in_every_form() -> None:
    settings = load("some/model", "--port=5", "--no-prefix-cache", "--access-log", "--kv-memory", "1.5GiB")
    assert settings.model == "some/model"
    assert (settings.port, settings.prefix_cache, settings.access_log, settings.kv_memory) == (5, False, True, 3 << 29)
    assert load("--prefix-cache=off").prefix_cache is False
    assert load("--kv-memory", "auto").kv_memory == 0
    assert load("--body-limit", "2MB").body_limit == 2_000_000


def test_synonyms_of_choices() -> None:
    settings = load(DEVICE="GPU", DTYPE="bfloat16")
    assert (settings.device, settings.dtype) == ("cuda", "bf16")


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (["--prot", "1"], {}, ["--prot", "--port"]),
        ([], {"OARLOCK_MAX_SEQUENCE": "1"}, ["OARLOCK_MAX_SEQUENCE", "OARLOCK_MAX_SEQUENCES"]),
        (["--port", "0"], {}, ["--port", "'0'", "1", "65535"]),
        (["--port", "1.5"], {}, ["--port", "integer"]),
        (["--port", "1_0"], {}, ["--port", "integer"]),
        (["--drain-seconds", "nan"], {}, ["--drain-seconds", "number"]),
        ([], {"BATCH_SIZE": "5000"}, ["BATCH_SIZE", "4096"]),
        (["--kv-memory", "lots"], {}, ["--kv-memory", "512MiB"]),
        (["--dtype", "fp8"], {}, ["--dtype", "bf16, f32"]),
        (["--port"], {}, ["--port", "needs a value"]),
        (["--no-prefix-cache=1"], {}, ["--prefix-cache"]),
        (["--access-log=perhaps"], {}, ["--access-log", "perhaps", "yes"]),
        (["a", "b"], {}, ["'b'", "'a'"]),
    ],
)
def test_bad_input_is_named_with_what_would_be_right(
    flags: list[str], environ: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(SettingError) as error:
        Settings.load(flags, environ)
    for word in words:
        assert word in str(error.value)


def test_kubernetes_service_links_are_no_settings() -> None:
    links = {
        "OARLOCK_SERVICE_HOST": "10.0.0.1",
        "OARLOCK_SERVICE_PORT": "9965",
        "OARLOCK_SERVICE_PORT_HTTP": "9965",
        "OARLOCK_PORT": "tcp://10.0.0.1:9965",
        "OARLOCK_PORT_9965_TCP": "tcp://10.0.0.1:9965",
        "OARLOCK_PORT_9965_TCP_ADDR": "10.0.0.1",
        "OARLOCK_CHAT_SERVICE_HOST": "10.0.0.2",
        "OARLOCK_CHAT_PORT": "tcp://10.0.0.2:80",
        "OARLOCK_HEALTH_PORT": "tcp://10.0.0.2:80",
    }
    assert Settings.load([], links) == Settings()


def test_secrets_are_masked_and_sources_shown() -> None:
    lines = load("--api-key", "s3cret", OARLOCK_THREADS="2").effective()
    assert not any("s3cret" in line for line in lines)
    assert any(line.startswith("threads ") and "OARLOCK_THREADS" in line for line in lines)
    assert len(lines) == len(DESCRIPTIONS) <= 80


def test_settings_travel_to_the_processes_as_json() -> None:
    settings = load("--api-key", "k", "--drain-seconds", "0.5")
    again = Settings.from_json(settings.to_json())
    assert again == settings and again.sources == settings.sources


def test_names_are_unique_and_all_on_the_help_page() -> None:
    names = [variable for name in DESCRIPTIONS for variable in env_names(name)]
    assert len(names) == len(set(names))
    page = help_text()
    assert all(flag_of(name) in page for name in DESCRIPTIONS)
