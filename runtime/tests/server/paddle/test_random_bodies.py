"""Random bodies of the private dialect on the real application: each is answered, and none harms the next.

As many as `--bodies` says.
"""

import asyncio
import json
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

SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 7, 511, 512, 1 << 40, 1 << 70, 0.5, -0.5, 1.0, 1e300, "", "a", "user", "\ud800"]
) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = sorted({*PRIVATE_FIELDS, "messages", "model", "stream", "temperature", "top_p", "max_tokens", "seed", "x"})
PROMPTS = st.sampled_from([{"text": "a"}, {"input_ids": [5, 6]}, {"messages": [{"role": "user", "content": "hi"}]}, {}])
BODIES = st.one_of(
    st.builds(
        lambda start, more: json.dumps({**start, **more}).encode(),
        PROMPTS,
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


@pytest.mark.conformance(11)
def test_random_bodies(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> None:
    with asyncio.Runner() as runner:

        async def made() -> Asgi:
            return Asgi(tokenizer)

        asgi = runner.run(made())

        @settings(
            max_examples=request.config.getoption("--bodies"),
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(BODIES)
        def run(body: bytes) -> None:
            check(*runner.run(asgi.post(body)))

        run()
        status, answer = runner.run(asgi.post(b'{"text": "a"}'))
        assert status == 200 and json.loads(answer)["result"] == asgi.client.text
        assert not asgi.service.live and not len(asgi.service.calls)
