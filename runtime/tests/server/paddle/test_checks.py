"""Every message of PaddleNLP's checks, word for word, over HTTP; and the order in which requests are refused."""

import ast
import json
from typing import Any

import httpx
import pytest
from support.scripted_api import ScriptedApi, scripted_api

from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.models.tokenizer import Tokenizer

PATH = "/v1/chat/completions"
A: dict[str, Any] = {"text": "a"}
USER = [{"role": "user", "content": "hi"}]
LENGTH = "The `{}` must be an integer and greater than 0"

ROWS: list[tuple[dict[str, Any], str]] = [
    ({"stream": False}, "The input parameters should contain either `text`, `input_ids` or `messages`"),
    ({"text": 5}, "The `text` in input parameters must be a string"),
    ({"text": ""}, "The `text` in input parameters cannot be empty"),
    ({**A, "system": 5}, "The `system` in input parameters must be a string"),
    ({"input_ids": "5"}, "The `input_ids` in input parameters must be a list"),
    ({"messages": [{"role": "user"}]}, "The item in messages must include `content`"),
    ({**A, "min_dec_len": 0}, LENGTH.format("min_dec_len")),
    ({**A, "min_dec_len": 1.5}, LENGTH.format("min_dec_len")),
    ({**A, "max_dec_len": 0}, LENGTH.format("max_dec_len")),
    ({**A, "max_dec_len": "5"}, LENGTH.format("max_dec_len")),
    ({**A, "seq_len": -1}, LENGTH.format("seq_len")),
    ({**A, "max_tokens": 0}, LENGTH.format("max_tokens")),
    ({**A, "topp": 0.5, "top_p": 0.5}, "Only one of ('topp', 'top_p') should be set"),
    ({**A, "topp": 1.5}, "The `topp` must be in [0, 1]"),
    ({**A, "top_p": -0.5}, "The `top_p` must be in [0, 1]"),
    ({**A, "temperature": -0.1}, "The `temperature` must be >= 0"),
    ({**A, "eos_token_ids": "2"}, "The `eos_token_ids` must be an list"),
    ({**A, "eos_token_ids": [2, 3]}, "The length of `eos_token_ids` must be 1 if you set it"),
    ({**A, "infer_seed": 1, "seed": 1}, "Only one of ('infer_seed', 'seed') should be set"),
    ({**A, "stream": "yes"}, "The `stream` must be a boolean"),
    ({**A, "response_type": "xml"}, "The `response_type` must be either `fastdeploy` or `openai`."),
    # What PaddleNLP does not check
    ({"input_ids": []}, "The `input_ids` in input parameters cannot be empty"),
    ({"input_ids": [1, 512]}, "The `input_ids` in input parameters must be integers in [0, 511]"),
    ({"input_ids": [True]}, "The `input_ids` in input parameters must be integers in [0, 511]"),
    ({"messages": []}, "The `messages` in input parameters cannot be empty"),
    ({"messages": "hi"}, "The `messages` in input parameters must be a list"),
    ({"messages": [{"content": "a"}]}, "The `role` of each item in messages must be a string"),
    ({"messages": [{"role": "user", "content": 5}]}, "The `content` of each item in messages must be a string"),
    ({**A, "req_id": []}, "The `req_id` must be a string"),
    ({**A, "req_id": "x" * 513}, "The length of `req_id` must be at most 512"),
    ({**A, "max_dec_len": True}, LENGTH.format("max_dec_len")),
    ({**A, "temperature": 101}, "The `temperature` must be in [0, 100]"),
    ({**A, "penalty_score": 0}, "The `penalty_score` must be in (0, 100]"),
    ({**A, "frequency_score": 3}, "The `frequency_score` must be in [-2, 2]"),
    ({**A, "presence_score": "1"}, "The `presence_score` must be in [-2, 2]"),
    ({**A, "eos_token_ids": [512]}, "The `eos_token_ids` must be integers in [0, 511]"),
    ({**A, "stop_sequences": ["a"] * 6}, "The length of `stop_sequences` must be at most 5"),
    ({**A, "stop_seqs": [""]}, "The `stop_seqs` must be a list of strings"),
    ({**A, "infer_seed": 1 << 64}, "The `infer_seed` must be an integer of 64 bits"),
    ({**A, "return_all_tokens": "no"}, "The `return_all_tokens` must be a boolean"),
    ({**A, "timeout": 0}, "The `timeout` must be a number greater than 0"),
]


def refused(api: ScriptedApi, body: dict[str, Any], code: int = 200) -> str:
    """The error_msg of a request that isn't streamed."""
    response = httpx.post(api.url + PATH, content=json.dumps({"return_usage": True, **body}), timeout=20)
    answer = response.json()
    assert response.status_code == 200 and answer["error_code"] == code and answer["result"] == ""
    message: str = answer["error_msg"]
    return message


@pytest.mark.conformance(11)
def test_each_rule_has_its_message(api: ScriptedApi) -> None:
    for body, message in ROWS:
        assert ast.literal_eval(refused(api, body)) == [message], body


@pytest.mark.conformance(11)
def test_all_that_is_wrong_is_told_at_once(api: ScriptedApi) -> None:
    message = refused(api, {"text": "", "temperature": -1, "topp": 2})
    assert message == (
        "['The `text` in input parameters cannot be empty', 'The `topp` must be in [0, 1]', "
        "'The `temperature` must be >= 0']"
    )


@pytest.mark.conformance(23)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"input_ids": [5] * 511},
            "Input text is too long, input_ids_len (511) + min_dec_len (1) >= max_seq_len ",
        ),
        (
            {"input_ids": [5] * 400, "min_dec_len": 112},
            "Input text is too long, input_ids_len (400) + min_dec_len (112) >= max_seq_len ",
        ),
        ({"input_ids": [5] * 201}, "Length of input token(201) exceeds the limit MAX_SEQ_LEN(200)."),
        ({**A, "max_dec_len": 101}, "The parameter max_dec_len(101) exceeds the limit MAX_DEC_LEN(100)."),
        ({**A, "min_dec_len": 101}, "The parameter min_dec_len(101) exceeds the limit MAX_DEC_LEN(100)."),
        ({**A, "seq_len": 101}, "The parameter max_dec_len(101) exceeds the limit MAX_DEC_LEN(100)."),
    ],
)
def test_limits_have_paddles_messages(tokenizer: Tokenizer, body: dict[str, Any], message: str) -> None:
    with scripted_api(tokenizer, max_prompt_tokens=200, max_output_tokens=100) as api:
        assert refused(api, body) == message


@pytest.mark.conformance(23)
def test_a_prompt_that_leaves_no_room_is_refused(api: ScriptedApi) -> None:
    message = refused(api, {"input_ids": [5] * 500, "max_dec_len": 13})
    assert message == "Input text is too long, input_ids_len (500) + max_dec_len (13) > max_seq_len (512)"
    assert refused(api, {"text": "a" * 3000}).startswith("Input text is too long")


@pytest.mark.conformance(23)
def test_a_text_that_cannot_fit_is_not_even_tokenized(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer) as api:
        assert refused(api, {"text": "a" * 300_000}).startswith("Input text is too long, input_ids_len (more than 512)")


@pytest.mark.conformance(23)
def test_strict_cuts_prompts_as_upstream_but_never_only_the_last_token(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, strict_paddle=True) as api:

        def length(body: dict[str, Any]) -> int:
            assert httpx.post(api.url + PATH, json=body, timeout=20).json()["error_code"] == 0
            return len(api.client.added[-1][0])

        assert length({"input_ids": [5] * 500, "max_dec_len": 100}) == 411
        assert api.client.added[-1][1].max_tokens == 100
        assert length({"input_ids": [5] * 500, "max_dec_len": 100, "enable_text_truncate": 0}) == 500
        assert api.client.added[-1][1].max_tokens == 12
        assert length({"input_ids": [5] * 100, "max_dec_len": 512}) == 100


def test_blocks_that_can_never_be_had(tokenizer: Tokenizer) -> None:
    with scripted_api(tokenizer, block_bs=1.0, block_ratio=0.5) as api:
        message = refused(api, {"input_ids": [5] * 200, "req_id": "x"})
        assert message.startswith("The input task required resources is exceed the limit, task={'req_id': 'x'")
        assert httpx.post(api.url + PATH, json={"input_ids": [5] * 100}, timeout=20).json()["error_code"] == 0


@pytest.mark.conformance(20)
def test_a_full_queue_is_told_before_anything_else(api: ScriptedApi) -> None:
    api.client.stats = EngineStats(waiting=130)
    assert refused(api, {"text": ""}) == "cached task num (130) exceeds the limit (128)"
    assert httpx.post(api.url + PATH, json=A, timeout=20).json()["error_code"] == 0  # the engine alone knows for sure


def test_a_stop_sequence_of_too_many_tokens(api: ScriptedApi) -> None:
    assert "has 60 tokens" in refused(api, {**A, "stop_sequences": ["x" * 60]})


def test_a_model_without_a_template(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "template", None)
    with scripted_api(tokenizer) as api:
        assert refused(api, {"messages": USER}).endswith("This model does not support chat_template.")
        assert httpx.post(api.url + PATH, json=A, timeout=20).json()["error_code"] == 0
        assert api.client.added[-1][0] == tokenizer.encode("a")


@pytest.mark.conformance(11)
def test_a_server_that_is_loading_says_so(api: ScriptedApi) -> None:
    api.client.heartbeat_age = 1000.0
    assert refused(api, A, 500) == "status is StatusCode.UNAVAILABLE, msg is the engine does not answer"
