"""Clients that leave, dawdle or knock at the wrong time: what the engine is told and what they are told."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.scripted_api import ScriptedApi, scripted_api

from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.service import State

BODY = {"prompt": "a", "max_tokens": 400, "ignore_eos": True}


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def raw(api: ScriptedApi, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """A connection on which a request has been sent."""
    content = json.dumps(body).encode()
    opened = socket.create_connection(("127.0.0.1", api.port))
    opened.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    return opened


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_leaves_is_aborted_at_once(api: ScriptedApi, stream: bool, count: int) -> None:
    api.client.text, api.client.pace = "x" * 400, 0.01
    opened = raw(api, {**BODY, "stream": stream, "n": count})
    until(lambda: len(api.client.added) == count)
    if stream:
        assert b"200 OK" in opened.recv(100)
    opened.close()
    until(lambda: api.client.aborted == count)
    until(lambda: api.service.calls.idle.is_set())
    until(lambda: api.client.running == 0)


def test_a_client_that_leaves_while_sending_its_body_harms_nobody(api: ScriptedApi) -> None:
    opened = socket.create_connection(("127.0.0.1", api.port))
    opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    opened.close()
    assert httpx.post(api.url + "/v1/completions", json={"prompt": "a"}).status_code == 200
    until(lambda: api.service.calls.idle.is_set())


def test_a_client_that_takes_nothing_is_dropped(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, send_buffer=16384, slow_reader_seconds=0.5) as api:
        api.client.text = "x" * 400
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", api.port))
        # Log-probabilities make the answer larger than what sockets and buffers hold.
        body = json.dumps({**BODY, "stream": True, "logprobs": 20, "n": 16}).encode()
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: len(api.client.added) == 16)
        until(lambda: api.service.calls.idle.is_set(), 20)
        families = {family["name"]: family["samples"] for family in api.service.metrics.families(0)}
        assert ("oarlock_requests_total", {"endpoint": "completions", "outcome": "slow_reader"}, 1.0) in families[
            "oarlock_requests"
        ]
        opened.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_told_so(tokenizer: Tokenizer, stream: bool) -> None:
    with scripted_api(tokenizer, request_timeout=1.0) as api:
        api.client.text, api.client.pace = "x" * 400, 0.1
        response = httpx.post(api.url + "/v1/completions", json={**BODY, "stream": stream}, timeout=20)
        last = response.text.rstrip().rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == "request_timeout"
        assert response.status_code == (200 if stream else 504)
        assert api.client.aborted == 1


def test_a_body_that_never_comes_is_not_waited_for(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, request_timeout=1.0) as api:
        opened = socket.create_connection(("127.0.0.1", api.port))
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        opened.settimeout(10)
        assert b"408" in opened.recv(100)
        opened.close()


def test_a_draining_server_finishes_what_it_has_and_takes_nothing_new(api: ScriptedApi) -> None:
    api.client.text, api.client.pace = "x" * 400, 0.01
    with httpx.stream("POST", api.url + "/v1/completions", json={**BODY, "stream": True}, timeout=20) as running:
        api.loop.call_soon_threadsafe(api.service.close, State.DRAINING)
        until(lambda: api.service.state is State.DRAINING)
        refused = httpx.post(api.url + "/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
        assert "retry-after" in refused.headers
        assert httpx.get(api.url + "/health").status_code == 503
        api.client.pace = 0.0
        assert running.read().endswith(b"data: [DONE]\n\n")


def test_a_dead_engine_ends_running_requests_with_an_error(api: ScriptedApi) -> None:
    api.client.text, api.client.pace = "x" * 400, 0.02
    with httpx.stream("POST", api.url + "/v1/completions", json={**BODY, "stream": True}, timeout=20) as running:
        api.loop.call_soon_threadsafe(lambda: api.service.close(State.FAILED, now=True))
        last = running.read().rstrip().rpartition(b"data: ")[2]
    assert json.loads(last)["error"]["code"] == "engine_dead"
    assert httpx.post(api.url + "/v1/completions", json={"prompt": "a"}).status_code == 503


def test_a_silent_engine_takes_no_requests(api: ScriptedApi) -> None:
    assert httpx.get(api.url + "/health").status_code == 200
    api.client.heartbeat_age = 60.0
    response = httpx.post(api.url + "/v1/completions", json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_hangs")


def test_keys(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, api_key="one, two") as api:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer three"}, 401),
            ({"authorization": "one"}, 401),
            ({"authorization": "Bearer two"}, 200),
        ):
            response = httpx.get(api.url + "/v1/models", headers=headers)
            assert response.status_code == status
            posted = httpx.post(api.url + "/v1/completions", json={"prompt": "a"}, headers=headers)
            assert posted.status_code == status
            if status == 401:
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(api.url + "/health").status_code == 200


def test_many_streams_at_once(api: ScriptedApi) -> None:
    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=64)) as client:
            body = {"prompt": "a", "stream": True, "max_tokens": 50}
            return await asyncio.gather(*(client.post(api.url + "/v1/completions", json=body) for _ in range(64)))

    answers = asyncio.run(all_of_them())
    assert len({answer.text.count("data: ") for answer in answers}) == 1
    assert api.client.running == 0
