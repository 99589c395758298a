"""Random bodies of the private dialect on the real application: each is answered, and none harms the next.

As many as `--bodies` says.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scripted_api import READY, ScriptedClient

from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.app import build_app
from oarlock_runtime.server.paddle.task import PRIVATE_FIELDS
from oarlock_runtime.server.service import Service
from oarlock_runtime.settings import Settings

SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 511, 512, 1 << 40, 1 << 70, 0.5, -0.5, 1.0, 1e300),
    *("", "a", "user", "\ud800", "é", "fastdeploy", "x" * 600),
]
VALUES = st.recursive(
    st.sampled_from(SCALARS) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = sorted({*PRIVATE_FIELDS, "messages", "model", "stream", "temperature", "top_p", "max_tokens", "seed", "x"})
PROMPTS: list[dict[str, Any]] = [
    {"text": "a"},
    {"input_ids": [5, 6]},
    {"messages": [{"role": "user", "content": "hi"}]},
    {},
]
BODIES = st.one_of(
    st.builds(
        lambda start, more: json.dumps({**start, **more}).encode(),
        st.sampled_from(PROMPTS),
        st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    ),
    st.builds(lambda value: json.dumps(value).encode(), VALUES),
    st.binary(max_size=64),
)


class Asgi:
    """The application, called without a socket."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        client: Any = ScriptedClient(tokenizer)
        self.client: ScriptedClient = client
        self.service = Service(Settings(model="tiny"), client)
        self.service.open(tokenizer, READY)
        self._app = build_app(self.service)

    async def post(self, body: bytes) -> tuple[int, bytes]:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [],
            "client": None,
        }
        left: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if not left:
                await asyncio.Event().wait()
            return left.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        assert not sent[-1].get("more_body", False)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def check(status: int, answer: bytes) -> None:
    """Either dialect's answer, whole or streamed; never the server's own failure."""
    assert status in (200, 400, 404), answer
    if answer.startswith(b"data: "):
        return
    for line in answer.splitlines():
        frame = json.loads(line)
        assert {"error_code", "choices", "error"} & set(frame)
        assert frame.get("error_code", 0) in (0, 200, 400), frame


def random_value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(8 if depth else 6)
    if kind < 6:
        return chance.choice(SCALARS)
    count = chance.randrange(4)
    if kind == 6:
        return [random_value(chance, depth - 1) for _ in range(count)]
    return {chance.choice(["role", "content", "x", ""]): random_value(chance, depth - 1) for _ in range(count)}


def random_body(chance: random.Random) -> bytes:
    """Mostly a prompt and some fields of any type, now and then cut short or with bytes changed."""
    fields = {chance.choice(FIELDS): random_value(chance, 3) for _ in range(chance.randrange(5))}
    body = bytearray(json.dumps({**chance.choice(PROMPTS), **fields}).encode())
    spoil = chance.randrange(20)
    if spoil == 0:
        del body[chance.randrange(len(body)) :]
    elif spoil == 1:
        body[chance.randrange(len(body))] = chance.randrange(256)
    elif spoil == 2:
        body = bytearray(json.dumps(random_value(chance, 3)).encode())
    return bytes(body)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture
def asgi(runner: asyncio.Runner, tokenizer: Tokenizer) -> Iterator[Asgi]:
    async def made() -> Asgi:
        return Asgi(tokenizer)

    one = runner.run(made())
    yield one
    status, answer = runner.run(one.post(b'{"text": "a"}'))
    assert status == 200 and json.loads(answer)["result"] == one.client.text
    assert not one.service.live and not len(one.service.calls)


@pytest.mark.conformance(11)
def test_random_bodies(asgi: Asgi, runner: asyncio.Runner, request: pytest.FixtureRequest) -> None:
    chance = random.Random(1)

    async def run() -> None:
        for _ in range(request.config.getoption("--bodies")):
            body = random_body(chance)
            try:
                check(*await asgi.post(body))
            except Exception as error:
                error.add_note(f"the body was {body!r}")
                raise

    runner.run(run())


@pytest.mark.conformance(11)
def test_bodies_that_hypothesis_thinks_of(asgi: Asgi, runner: asyncio.Runner) -> None:
    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(BODIES)
    def run(body: bytes) -> None:
        check(*runner.run(asgi.post(body)))

    run()
