"""Arbitrary bodies: each gets an answer or a 4xx in OpenAI's shape, and none harms the server."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scripted_api import ScriptedApi

from oarlock_runtime.server.http.fields import REFUSED, ChatFields, CompletionFields

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([0, 1, 2, -1, 0.5, "a", "user", "\ud800"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "1", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)
NAMES = sorted({*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__, *REFUSED, "nonsense"})
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
LIMITS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def check(client: httpx.Client, path: str, content: bytes) -> None:
    response = client.post(path, content=content)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"] and isinstance(error["message"], str) and len(error["message"]) < 1000
        assert error["param"] is None or isinstance(error["param"], str)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("start", [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}])
def test_any_values_for_known_fields(api: ScriptedApi, path: str, start: dict[str, Any]) -> None:
    with httpx.Client(base_url=api.url, timeout=20) as client:

        @LIMITS
        @given(BODIES)
        def run(body: dict[str, Any]) -> None:
            check(client, path, json.dumps({**start, **body}).encode())

        run()
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_any_bytes(api: ScriptedApi) -> None:
    with httpx.Client(base_url=api.url, timeout=20) as client:

        @LIMITS
        @given(st.binary(max_size=200))
        def run(body: bytes) -> None:
            check(client, "/v1/chat/completions", body)

        run()
