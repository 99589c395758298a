"""The private dialect over HTTP, on the real application over a scripted engine."""

import json
from typing import Any

import httpx
import openai
import pytest
from support.scripted_api import ScriptedApi, scripted_api
from support.served import until

from oarlock_runtime.models.tokenizer import Tokenizer

PATH = "/v1/chat/completions"
TEXT = "Hello there, world!"
USER: Any = [{"role": "user", "content": "hi"}]


def ask(api: ScriptedApi, body: Any, path: str = PATH) -> dict[str, Any]:
    """The answer to a request that isn't streamed."""
    response = httpx.post(api.url + path, json=body, timeout=20)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    answer: dict[str, Any] = response.json()
    return answer


def frames(api: ScriptedApi, body: Any) -> list[dict[str, Any]]:
    """The lines of a stream."""
    response = httpx.post(api.url + PATH, json={**body, "stream": True}, timeout=20)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n") and "data:" not in response.text
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.conformance(9)
def test_a_text_gets_its_result(api: ScriptedApi) -> None:
    assert ask(api, {"text": "hello"}) == {"result": TEXT, "tokens_all": TEXT, "error_msg": "", "error_code": 0}
    usage = ask(api, {"text": "hello", "return_usage": True, "max_dec_len": 5})["usage"]
    assert usage == {"completion_tokens": 5, "prompt_tokens": len(api.client.added[0][0])}


@pytest.mark.conformance(10)
def test_a_stream_is_a_frame_a_line(api: ScriptedApi) -> None:
    lines = frames(api, {"text": "hello", "req_id": "mine", "infer_seed": 7})
    *inner, last = lines
    assert {line["req_id"] for line in lines} == {"mine"} and {line["infer_seed"] for line in lines} == {7}
    assert {line["is_end"] for line in inner} == {0} and last["is_end"] == 1
    assert "".join(line["token"] for line in lines) == last["tokens_all"] == TEXT
    assert [one for line in lines for one in line["token_ids"]] == last["tokens_all_ids"]
    assert last["tokens_all_num"] == len(last["tokens_all_ids"]) + 1 == last["usage"]["completion_tokens"]
    sent = 0
    for line in lines:
        assert line["send_idx"] == sent and line["error_code"] == 0 and line["error_msg"] == ""
        assert line["usage"]["prompt_tokens"] and line["return_all_tokens"] is False
        assert line["inference_time_cost"] >= 0
        sent += len(line["token_ids"])
    assert last["token_ids"] == [] or len(lines) == 1


def test_benchmark_adds_timestamps(api: ScriptedApi) -> None:
    names = {
        "preprocess_start_time",
        "preprocess_end_time",
        "schedule_start_time",
        "inference_start_time",
        "inference_current_step_time",
        "http_received_time",
    }
    assert names <= set(frames(api, {"text": "a", "benchmark": True})[0])
    assert not names & set(frames(api, {"text": "a"})[0])


def test_return_all_tokens_gives_the_last_frame_alone(api: ScriptedApi) -> None:
    (frame,) = frames(api, {"text": "a", "return_all_tokens": True})
    assert frame["token"] == frame["tokens_all"] == TEXT and frame["token_ids"] == frame["tokens_all_ids"]
    assert ask(api, {"text": "a", "return_all_tokens": True})["result"] == TEXT


@pytest.mark.conformance(12)
@pytest.mark.parametrize(
    ("body", "private"),
    [
        ({"text": "a", "model": "default"}, True),
        ({"input_ids": [3, 4], "model": "default"}, True),
        ({"messages": USER}, True),
        ({"messages": USER, "model": None}, True),
        ({"messages": USER, "model": "default", "topp": 0.5}, True),
        ({"messages": USER, "model": "default", "req_id": "x"}, True),
        ({"messages": USER, "model": "default", "max_dec_len": 4}, True),
        ({"messages": USER, "model": "default", "penalty_score": 1.0}, True),
        ({"messages": USER, "model": "default", "max_tokens": 4}, False),
    ],
)
def test_whose_a_body_is(api: ScriptedApi, body: dict[str, Any], private: bool) -> None:
    answer = httpx.post(api.url + PATH, json=body, timeout=20).json()
    assert ("error_code" in answer, "choices" in answer) == (private, not private)


@pytest.mark.conformance(13)
def test_a_live_req_id_is_refused(api: ScriptedApi) -> None:
    api.client.pace = 0.02
    with httpx.stream("POST", api.url + PATH, json={"text": "a", "req_id": "x", "stream": True}, timeout=20) as first:
        lines = first.iter_lines()
        next(lines)
        error = ask(api, {"text": "a", "req_id": "x"})
        assert error["error_code"] == 200 and error["result"] == "" and error["req_id"] == "x"
        assert (
            error["error_msg"]
            == "The req_id x already exists in the current batch, the current request will be ignored."
        )
        assert json.loads(list(lines)[-1])["tokens_all"] == TEXT
    api.client.pace = 0.0
    assert ask(api, {"text": "a", "req_id": "x"})["error_code"] == 0


@pytest.mark.conformance(14)
def test_the_timeout_bounds_the_whole_request(api: ScriptedApi) -> None:
    api.client.pace = 0.2  # a token comes in time, but not all of them
    *_, last = frames(api, {"text": "a", "timeout": 1})
    assert (last["error_code"], last["error_msg"]) == (501, "the request took too long")
    until(lambda: api.client.aborted == 1)


@pytest.mark.conformance(11)
def test_what_the_engine_fails_at_is_told(api: ScriptedApi) -> None:
    api.client.fail_after = 3
    *_, last = frames(api, {"text": "a"})
    assert last["error_code"] == 500 and last["error_msg"].endswith("msg is the scripted engine failed")
    answer = ask(api, {"text": "a"})
    assert answer["error_code"] == 500 and answer["result"] == ""


@pytest.mark.conformance(20)
def test_a_full_queue_is_told_in_paddles_words(api: ScriptedApi) -> None:
    api.client.seats = 0
    error = ask(api, {"text": "a"})
    assert error["error_code"] == 200 and error["error_msg"] == "cached task num (128) exceeds the limit (128)"


@pytest.mark.conformance(15)
@pytest.mark.parametrize("base", ["/v1", "/v1/chat/completions"])
def test_the_official_client_works_with_either_base(api: ScriptedApi, base: str) -> None:
    with openai.OpenAI(base_url=api.url + base, api_key="none", max_retries=0, timeout=20) as client:
        assert client.models.list().data[0].id == client.models.retrieve("default").id == "tiny"
        whole = client.chat.completions.create(model="default", messages=USER)
        assert whole.choices[0].message.content == TEXT
        pieces = client.chat.completions.create(model="default", messages=USER, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == TEXT
        assert client.completions.create(model="default", prompt="a").choices[0].text == TEXT[:16]
        streamed = client.completions.create(model="default", prompt="a", stream=True, max_tokens=100)
        assert "".join(piece.choices[0].text for piece in streamed) == TEXT


@pytest.mark.conformance(12)
def test_strict_takes_every_body_as_its_own(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, strict_paddle=True) as api:
        body = {"messages": USER, "model": "default"}
        assert ask(api, body) == {"result": TEXT, "error_msg": "", "error_code": 0}
        assert "choices" in ask(api, body, PATH + "/chat/completions")
        assert httpx.post(api.url + PATH, content=b"{", timeout=20).json()["error_code"] == 400


def test_strict_has_upstreams_last_text_alone(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, strict_paddle=True) as api:
        assert ask(api, {"text": "a", "return_all_tokens": True})["result"] == ""
        (frame,) = frames(api, {"text": "a", "return_all_tokens": True})
        assert frame["token"] == "" and frame["tokens_all"] == TEXT and "finish_reason" not in frame


def test_streaming_can_be_disabled_for_all(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, disable_streaming=True) as api:
        (frame,) = frames(api, {"text": "a"})
        assert frame["token"] == frame["tokens_all"] == TEXT and frame["return_all_tokens"] is False
        assert ask(api, {"text": "a"})["result"] == TEXT


@pytest.mark.conformance(14)
def test_strict_bounds_the_time_between_frames(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, strict_paddle=True) as api:
        api.client.pace = 0.1
        assert frames(api, {"text": "a", "timeout": 1})[-1]["tokens_all"] == TEXT
        api.client.pace = 2.0
        error = ask(api, {"text": "a", "timeout": 1})
        assert (error["error_code"], error["error_msg"]) == (501, "")


def test_a_client_that_leaves_ends_its_request(api: ScriptedApi) -> None:
    api.client.pace = 0.2
    with httpx.stream("POST", api.url + PATH, json={"text": "a", "stream": True}, timeout=20) as response:
        next(response.iter_lines())
        api.client.pace = 5.0  # so that it can't end by itself
    until(lambda: api.client.aborted == 1)
    until(lambda: not api.service.live)


def test_the_last_frame_says_why_it_ended(api: ScriptedApi) -> None:
    assert frames(api, {"text": "a"})[-1]["finish_reason"] == "stop"
    last = frames(api, {"text": "a", "max_dec_len": 3})[-1]
    assert (last["finish_reason"], last["tokens_all"], last["tokens_all_num"]) == ("length", "Hel", 4)
    assert last["usage"]["completion_tokens"] == 3


def test_keys_are_asked_for(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, api_key="secret") as api:
        assert httpx.post(api.url + PATH, json={"text": "a"}, timeout=20).status_code == 401
        keyed = httpx.post(api.url + PATH, json={"text": "a"}, headers={"Authorization": "Bearer secret"}, timeout=20)
        assert keyed.json()["result"] == TEXT
