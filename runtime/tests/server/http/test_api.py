"""The API as the official client sees it, over a scripted engine: shapes, streams, limits, errors."""

import json
import math
from typing import Any

import httpx
import openai
import pytest
from support.scripted_api import ScriptedApi, byte_tokens, scripted_api

from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.openapi import BOUNDS

TEXT = "Hello there, world!"
USER: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(api: ScriptedApi) -> Any:
    with openai.OpenAI(base_url=api.url + "/v1", api_key="none", max_retries=0, timeout=20) as one:
        yield one


def post(api: ScriptedApi, body: Any, path: str = "/v1/completions", **rest: Any) -> httpx.Response:
    """A chat without a model would be PaddleNLP's, so it gets one."""
    if path == "/v1/chat/completions" and isinstance(body, dict):
        body = {"model": "default", **body}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(api.url + path, content=content, timeout=20, **rest)


def refused(api: ScriptedApi, body: Any, status: int = 400, path: str = "/v1/completions") -> dict[str, Any]:
    """The error object of a call that must fail with `status`."""
    response = post(api, body, path)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.conformance(16)
def test_a_chat_whole_and_streamed(client: Any) -> None:
    whole = client.chat.completions.create(model="default", messages=USER)
    assert whole.choices[0].message.content == TEXT
    assert (whole.object, whole.choices[0].finish_reason, whole.model) == ("chat.completion", "stop", "tiny")
    assert whole.usage.completion_tokens == len(TEXT) + 1
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=USER, stream=True, max_completion_tokens=7, stream_options={"include_usage": True}
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id.startswith("chatcmpl-")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT[:7]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens == 7
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_completion_takes_every_form_of_prompt(client: Any, api: ScriptedApi) -> None:
    ids = api.tokenizer.encode("abc", add_special=True)
    for prompt, count in (("abc", 1), (["abc", "d"], 2), (ids, 1), ([ids, ids], 2)):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=5)
        assert [choice.text for choice in answer.choices] == [TEXT[:5]] * count
        assert [choice.index for choice in answer.choices] == list(range(count))
        assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert api.client.added[0][0] == ids


@pytest.mark.conformance(17)
def test_n_choices_with_seeds_of_their_own(client: Any, api: ScriptedApi) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, seed=(1 << 64) - 1, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [sampling.seed for _, sampling in api.client.added] == [(1 << 64) - 1, 0, (1 << 64) - 1, 0]
    assert answer.usage.prompt_tokens == 2 * len(api.tokenizer.encode("a"))
    assert answer.usage.completion_tokens == 12
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=3, stream=True):
        streamed[chunk.choices[0].index] = streamed.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert streamed == dict.fromkeys(range(4), TEXT[:3])


@pytest.mark.conformance(17)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_text_before_them_and_the_request(client: Any, api: ScriptedApi, stream: bool) -> None:
    api.client.text = "one two\n\nthree" + "x" * 300
    api.client.pace = 0.002  # so that it can't end before it is stopped
    answer = client.completions.create(model="tiny", prompt="a", stop=["\n\nth", "zzz"], max_tokens=400, stream=stream)
    if stream:
        chunks = list(answer)
        text, reason = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert (text, reason) == ("one two", "stop")
    assert api.client.aborted == 1


def test_stop_strings_wait_for_min_tokens(api: ScriptedApi) -> None:
    body = {"prompt": "a", "stop": "l", "min_tokens": 5, "max_tokens": 30}
    assert post(api, body).json()["choices"][0]["text"] == "Hello there, wor"


def test_a_stream_never_splits_a_character(api: ScriptedApi) -> None:
    api.client.text = "né 🙂日本 ok"
    chunks = events(post(api, {"prompt": "a", "stream": True, "max_tokens": 100}))
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == api.client.text
    assert not any("\ufffd" in piece for piece in pieces)
    cut = post(api, {"prompt": "a", "max_tokens": 5}).json()["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == ("né \ufffd", "length")


@pytest.mark.conformance(17)
def test_log_probabilities_in_both_styles(client: Any, api: ScriptedApi) -> None:
    api.client.text = "aé"
    prompt = byte_tokens(api.tokenizer, "xy")
    answer = client.completions.create(model="tiny", prompt=prompt, logprobs=2, echo=True, max_tokens=9)
    told = answer.choices[0].logprobs
    assert answer.choices[0].text == "xyaé"
    assert told.token_logprobs == [None, *[-0.5] * 4]
    assert told.tokens[:3] == ["x", "y", "a"] and len(told.top_logprobs[1]) == 2 and told.top_logprobs[0] is None
    assert told.text_offset == [0, 1, 2, 3, 3]
    chat = client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=3)
    content = chat.choices[0].logprobs.content
    assert [one.bytes for one in content] == [[97], [0xC3], [0xA9]]
    assert all(one.logprob == -0.5 and len(one.top_logprobs) == 3 for one in content)
    streamed = list(client.chat.completions.create(model="tiny", messages=USER, logprobs=True, stream=True))
    tokens = [one.token for chunk in streamed if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert tokens == ["a", "\ufffd", "\ufffd"]


def test_echo_without_tokens_scores_the_prompt(api: ScriptedApi) -> None:
    answer = post(api, {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}).json()
    assert answer["choices"][0]["text"] == "abc"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("most", [0, 2])
def test_echo_of_a_single_token_shows_it_without_a_score(api: ScriptedApi, most: int) -> None:
    prompt = byte_tokens(api.tokenizer, "x")
    body = {"prompt": prompt, "max_tokens": most, "echo": True, "logprobs": 1}
    told = post(api, body).json()["choices"][0]["logprobs"]
    assert told["tokens"] == ["x", *TEXT[:most]]
    assert told["token_logprobs"] == [None, *[-0.5] * most]
    streamed = events(post(api, {**body, "stream": True}))
    shown = [chunk["choices"][0]["logprobs"] or {"tokens": []} for chunk in streamed]
    assert [token for one in shown for token in one["tokens"]] == told["tokens"]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self"])
def test_a_template_variable_of_ours_is_refused_by_name(api: ScriptedApi, name: str) -> None:
    body = {"messages": USER, "chat_template_kwargs": {name: []}}
    assert refused(api, body, path="/v1/chat/completions")["param"] == f"chat_template_kwargs.{name}"


def test_more_answers_than_the_server_can_ever_hold_are_refused_for_good(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, max_n=32) as api:  # which runs 8 and queues 8
        assert refused(api, {"prompt": ["a"] * 2, "n": 9})["param"] == "prompt"
        assert refused(api, {"prompt": "a", "n": 17})["param"] == "n"
        assert post(api, {"prompt": ["a"] * 2, "n": 8}).status_code == 200


def test_the_description_tells_the_bounds_that_hold(api: ScriptedApi) -> None:
    components = httpx.get(api.url + "/openapi.json", timeout=20).json()["components"]["schemas"]
    assert set(components["CompletionFields"]["required"]) == {"prompt"}
    for kind, path, start in (
        ("CompletionFields", "/v1/completions", {"prompt": "a"}),
        ("ChatFields", "/v1/chat/completions", {"messages": USER, "logprobs": True}),
    ):
        for name in BOUNDS.keys() & components[kind]["properties"].keys():
            shown = next(one for one in components[kind]["properties"][name]["anyOf"] if one["type"] != "null")
            for side, step in (("minimum", -1), ("maximum", 1)):
                if side in shown:
                    assert refused(api, {**start, name: shown[side] + step}, path=path)["param"] == name
            if "exclusiveMinimum" in shown:
                assert refused(api, {**start, name: shown["exclusiveMinimum"]}, path=path)["param"] == name


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.conformance(17)
@pytest.mark.parametrize(
    ("format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT, "strict": True}}, OBJECT),
    ],
)
def test_a_response_format_reaches_the_engine_as_a_schema(api: ScriptedApi, format: Any, schema: Any) -> None:
    body = {"messages": USER, "max_tokens": 2, "response_format": format}
    assert post(api, body, "/v1/chat/completions").status_code == 200
    _, sampling = api.client.added[0]
    assert (sampling.json_schema and json.loads(sampling.json_schema)) == schema


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, None, "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}},
            "response_format",
            "nope",
        ),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens", "response_format"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "unknown"),
        ({"response_format": {}}, "response_format.type", "missing"),
    ],
)
def test_a_response_format_that_cannot_be_had_is_refused(api: ScriptedApi, body: Any, field: Any, words: str) -> None:
    error = refused(api, {"messages": USER, **body}, path="/v1/chat/completions")
    assert words in error["message"] and field in (None, error["param"])
    assert not api.client.added


def test_a_cache_salt_reaches_the_engine(api: ScriptedApi) -> None:
    for salt in (None, "tenant"):
        assert post(api, {"prompt": ["a", "b"], "cache_salt": salt}).status_code == 200
    assert api.client.salts == ["", "", "tenant", "tenant"]
    assert refused(api, {"prompt": "a", "cache_salt": "x" * 257})["param"] == "cache_salt"


def test_head_is_get_without_a_body(api: ScriptedApi) -> None:
    for path, status in (("/health", 200), ("/v1/models", 200), ("/v1/models/none", 404), ("/v1/completions", 405)):
        response = httpx.head(api.url + path, timeout=20)
        assert (response.status_code, response.content) == (status, b"")
        assert int(response.headers["content-length"]) > 0


@pytest.mark.conformance(17)
def test_sampling_reaches_the_engine(client: Any, api: ScriptedApi) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": [{"type": "text", "text": "be brief"}]}, *USER],
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": -100},
        seed=7,
        user="u",
        metadata={"a": "b"},
        store=False,
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "stop_token_ids": [9]},
    )
    prompt, sampling = api.client.added[0]
    assert "<|im_start|>system\nbe brief<|im_end|>" in api.tokenizer.decode(prompt, skip_special=False)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 3, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.1)
    assert (sampling.seed, sampling.logit_bias, sampling.min_tokens) == (7, {5: -100.0}, 2)
    assert sampling.stop_token_ids == (9, 2) and sampling.max_tokens == 512 - len(prompt)
    post(api, {"prompt": "a", "ignore_eos": True, "max_tokens": None, "temperature": 0})
    _, sampling = api.client.added[1]
    assert sampling.stop_token_ids == () and sampling.ignore_eos and sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [1, "a"]}, "prompt", "mixes"),
        ({"prompt": [512]}, "prompt", "512; ids must be from 0 to 511"),
        ({"prompt": [-1]}, "prompt", "-1"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty"),
        ({"prompt": ["a"] * 5}, "prompt", "at most 4"),
        ({"prompt": [5] * 600}, "prompt", "600 tokens; the context is 512"),
        ({"prompt": [5, 6], "max_tokens": 511}, "max_tokens", "only 510 fit"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "from 0"),
        ({"prompt": "a", "n": 0}, "n", "from 1 to 4"),
        ({"prompt": "a", "n": 5}, "n", "from 1 to 4"),
        ({"prompt": "a", "best_of": 2}, "best_of", "equal to n"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "-0.1"),
        ({"prompt": "a", "top_p": -0.1}, "top_p", "above 0"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"prompt": "a", "logit_bias": {"512": 1}}, "logit_bias", "512"),
        ({"prompt": "a", "stop": [""]}, "stop", "stop[0]"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop", "at most 16"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "stream"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "seed": 1 << 64}, "seed", "seed"),
    ],
)
def test_completions_that_cannot_be_served(api: ScriptedApi, body: dict[str, Any], field: str, words: str) -> None:
    error = refused(api, body)
    assert error["param"] == field and words in error["message"]
    assert not api.client.added


@pytest.mark.conformance(17)
@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "messages", "missing"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot'; it must be one of"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "image_url",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "not supported",
        ),
        ({"messages": USER, "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"messages": USER, "top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"messages": USER, "tools": [{}]}, "tools", "not supported"),
        ({"messages": USER, "echo": True}, "echo", "unknown"),
        ({"messages": [{"role": "user", "content": "a" * 2000}]}, "messages", "tokens"),
    ],
)
def test_chats_that_cannot_be_served(api: ScriptedApi, body: dict[str, Any], field: str, words: str) -> None:
    error = refused(api, body, path="/v1/chat/completions")
    assert error["param"] == field and words in error["message"]


@pytest.mark.conformance(17)
@pytest.mark.parametrize("fields", [{"temperature": 0}, {"top_p": 0}, {"top_p": 0, "temperature": 2}])
def test_zero_is_greedy(client: Any, api: ScriptedApi, fields: dict[str, Any]) -> None:
    client.completions.create(model="default", prompt="a", **fields)
    client.chat.completions.create(model="default", messages=USER, **fields)
    assert [sampling.temperature for _, sampling in api.client.added] == [0, 0]


@pytest.mark.conformance(15)
def test_model_names(client: Any, api: ScriptedApi) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="gpt-5", prompt="a")
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_paths_and_methods_that_do_not_exist(api: ScriptedApi) -> None:
    assert refused(api, {}, 404, "/v1/embeddings")["code"] == "not_found"
    response = httpx.get(api.url + "/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert post(api, {}, "/health").status_code == 405


def test_bodies_are_bounded(api: ScriptedApi) -> None:
    big = b'{"prompt": "' + b"a" * (1 << 16) + b'"}'
    assert refused(api, big, 413)["code"] == "body_too_large"
    chunked = httpx.post(api.url + "/v1/completions", content=(big[i : i + 999] for i in range(0, len(big), 999)))
    assert chunked.status_code == 413
    assert post(api, b"x", headers={"content-encoding": "gzip"}).status_code == 415


def test_a_full_queue_says_when_to_try_again(client: Any, api: ScriptedApi) -> None:
    api.client.seats = 1
    response = post(api, {"prompt": ["a", "b"], "max_tokens": 3})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=3, stream=True)
    assert client.completions.create(model="tiny", prompt="a", max_tokens=3).choices[0].text == TEXT[:3]


def test_an_engine_error_ends_one_request_with_its_reason(api: ScriptedApi) -> None:
    api.client.fail_after = 3
    assert refused(api, {"prompt": "a"}, 500)["message"] == "the scripted engine failed"
    response = post(api, {"prompt": "a", "stream": True})
    last = json.loads(response.text.rstrip().rpartition("data: ")[2])
    assert last["error"]["code"] == "engine_error" and "[DONE]" not in response.text


def test_minus_infinity_is_a_number_in_json(api: ScriptedApi) -> None:
    from oarlock_runtime.server.http.logprobs import TokenScore, chat_logprobs, completion_logprobs

    scores = [TokenScore(5, -math.inf, [(6, -math.inf)], 0)]
    told = [
        completion_logprobs(scores, api.tokenizer.token_text, 1),
        chat_logprobs(scores, api.tokenizer.token_bytes),
    ]
    assert "Infinity" not in json.dumps(told)


def test_the_description_covers_the_generating_endpoints(api: ScriptedApi) -> None:
    document = httpx.get(api.url + "/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/version"} <= set(document["paths"])
    assert "top_k" in document["components"]["schemas"]["ChatFields"]["properties"]
