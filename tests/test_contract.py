"""What the operator hands over, the server reads. The two never import each other; here their names meet."""

from typing import Any

import pytest
from operator_support.builders import deployment

from oarlock_operator.api.crd import structural
from oarlock_operator.api.server import Env, Server
from oarlock_operator.decide.progress import progress_from
from oarlock_operator.render.environment import download_environment, server_environment
from oarlock_runtime.cli.download import line_by_line
from oarlock_runtime.models.sources.progress import Progress
from oarlock_runtime.settings import Settings

# Which part of a model a download fetches; the server finds its place by addresses.
DOWNLOADS_ALONE = {"NODE_RANK"}
FOR_LIBRARIES = {"HOME", "POD_NAME", "CUDA_VISIBLE_DEVICES", "HF_TOKEN"}
VARIABLES = {
    about.alias or "": env for about in Server.model_fields.values() for env in about.metadata if isinstance(env, Env)
}
SCHEMAS: dict[str, Any] = structural(Server)["properties"]


def values_of(field: str) -> list[Any]:
    """The least and the greatest value that the API takes, or each choice."""
    schema = SCHEMAS[field]
    if schema["type"] == "boolean":
        return [True, False]
    if "enum" in schema:
        return list(schema["enum"])
    if field == "kvMemory":
        return ["1M", "64Ti", "1.5Gi"]
    return [schema["minimum"], schema["maximum"]]


def test_every_field_of_the_server_has_a_variable_but_two() -> None:
    # The one is refused unless it asks for what is so anyway, the other comes from a Secret.
    assert set(SCHEMAS) - set(VARIABLES) == {"kvCacheDtype", "apiKeySecret"}


@pytest.mark.parametrize("field", VARIABLES)
def test_the_server_takes_each_value_that_the_api_takes(field: str) -> None:
    env = VARIABLES[field]
    for value in values_of(field):
        settings = Settings.load([], {env.name: env.text(value)})
        assert env.name in settings.sources.values(), f"{env.name} is read by no setting"


@pytest.mark.parametrize(("parallelism", "device"), [({"nodes": 2}, "cpu"), ({"gpusPerNode": 1}, "cuda")])
def test_every_variable_of_a_pod_is_read(parallelism: dict[str, int], device: str) -> None:
    server = {field: values_of(field)[0] for field in VARIABLES} | {"apiKeySecret": {"name": "keys"}}
    made = deployment(server=server | {"maxContext": 64, "maxOutputTokens": 64}, parallelism=parallelism)
    rendered = {variable["name"]: variable.get("value", "from elsewhere") for variable in server_environment(made)}
    settings = Settings.load([], rendered)
    assert not set(rendered) - set(settings.sources.values()) - DOWNLOADS_ALONE - FOR_LIBRARIES
    assert (settings.port, settings.health_port, settings.device) == (9965, 8110, device)
    assert settings.drain_seconds == made.spec.drain_seconds and settings.api_key == "from elsewhere"
    fetching = {variable["name"] for variable in download_environment(made)}
    assert fetching <= set(rendered) | FOR_LIBRARIES


@pytest.mark.parametrize("total", [96 << 20, None])
@pytest.mark.parametrize("rate", [5 << 20, 0])
@pytest.mark.parametrize("note", ["", "no answer; again in 2 s"])
def test_the_operator_reads_what_a_download_says(
    total: int | None, rate: int, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line_by_line()(Progress("retrying" if note else "downloading", "model.gguf", 12 << 20, total, rate, note))
    read = progress_from(capsys.readouterr().err)
    assert read is not None and (read.bytes, read.total, read.rate) == (12 << 20, total, rate or None)
