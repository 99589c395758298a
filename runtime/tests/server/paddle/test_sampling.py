"""PaddleNLP's sampling fields in the engine's terms, as they reach it over HTTP."""

from typing import Any

import httpx
import pytest
from support.scripted_api import ScriptedApi, scripted_api

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.models.tokenizer import Tokenizer


def sampling(api: ScriptedApi, **fields: Any) -> SamplingParams:
    """What the engine is asked for."""
    answer = httpx.post(api.url + "/v1/chat/completions", json={"text": "a", **fields}, timeout=20).json()
    assert answer["error_code"] == 0, answer
    return api.client.added[-1][1]


def test_defaults(api: ScriptedApi) -> None:
    params = sampling(api)
    assert (params.top_p, params.temperature, params.min_tokens) == (0.7, 0.95, 1)
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1, 0, 0)
    assert params.max_tokens == 512 - len(api.client.added[-1][0])
    assert params.last_prompt_token_counts


@pytest.mark.conformance(17)
@pytest.mark.parametrize("fields", [{"temperature": 0}, {"topp": 0}, {"top_p": 0}, {"topp": 0.0, "temperature": 1.5}])
def test_zero_is_greedy(api: ScriptedApi, fields: dict[str, Any]) -> None:
    assert sampling(api, **fields).temperature == 0


def test_penalties_and_aliases(api: ScriptedApi) -> None:
    params = sampling(
        api, penalty_score=1.2, frequency_score=0.3, presence_score=-0.4, top_p=0.5, max_tokens=9, min_dec_len=4
    )
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1.2, 0.3, -0.4)
    assert (params.top_p, params.max_tokens, params.min_tokens) == (0.5, 9, 4)
    assert sampling(api, max_dec_len=3, seq_len=5, max_tokens=7).max_tokens == 3
    assert sampling(api, max_dec_len=3, min_dec_len=5).min_tokens == 3


@pytest.mark.conformance(24)
def test_a_seed_is_given_or_made_and_told(api: ScriptedApi) -> None:
    assert sampling(api, infer_seed=7).seed == sampling(api, seed=7).seed == 7
    made = [sampling(api).seed, sampling(api, infer_seed=0).seed]
    assert len(set(made)) == 2 and all(seed is not None and 0 < seed < 1 << 63 for seed in made)


@pytest.mark.conformance(22)
def test_each_request_has_its_own_end_tokens(api: ScriptedApi, tokenizer: Tokenizer) -> None:
    token = tokenizer.token_id("w") or 0
    assert sampling(api, eos_token_ids=[token]).stop_token_ids == (token, *tokenizer.eos_ids)
    assert sampling(api, eos_token_ids=token).stop_token_ids == (token, *tokenizer.eos_ids)
    assert sampling(api).stop_token_ids == tokenizer.eos_ids
    answer = httpx.post(
        api.url + "/v1/chat/completions", json={"text": "a", "eos_token_ids": [token]}, timeout=20
    ).json()
    assert answer["result"] == "Hello there, "


@pytest.mark.conformance(22)
def test_stop_sequences_are_of_one_request(api: ScriptedApi) -> None:
    def result(**fields: Any) -> str:
        body = {"text": "a", **fields}
        answer: str = httpx.post(api.url + "/v1/chat/completions", json=body, timeout=20).json()["result"]
        return answer

    assert result(stop_sequences=["there"]) == "Hello "
    assert result(stop_seqs="wor") == "Hello there, "
    assert result() == "Hello there, world!"
    assert result(max_dec_len=4) == "Hell"
    assert result(stop_sequences=["lo"], min_dec_len=10) == "Hello there, world!"


def test_a_text_goes_through_the_template_unless_it_is_switched_off(api: ScriptedApi, tokenizer: Tokenizer) -> None:
    sampling(api)
    templated = tokenizer.render_chat([{"role": "user", "content": "a"}])
    assert api.client.added[-1][0] == tokenizer.encode(templated, add_special=False)
    with scripted_api(tokenizer, hf_tokenizer=True) as plain:
        sampling(plain)
        assert plain.client.added[-1][0] == tokenizer.encode("a")


def test_the_system_field_counts_where_it_is_wanted(tokenizer: Tokenizer) -> None:
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "be brief"}
    for wanted, given, messages in (
        (False, [user], [user]),
        (True, [user], [system, user]),
        (True, [{**system, "content": "own"}, user], [{**system, "content": "own"}, user]),
    ):
        with scripted_api(tokenizer, system_field=wanted) as api:
            body = {"messages": given, "system": "be brief"}
            assert httpx.post(api.url + "/v1/chat/completions", json=body, timeout=20).json()["error_code"] == 0
            expected = tokenizer.render_chat(messages)
            assert api.client.added[-1][0] == tokenizer.encode(expected, add_special=False)


def test_input_ids_win_over_a_text(api: ScriptedApi) -> None:
    sampling(api, input_ids=[3, 4, 5])
    assert api.client.added[-1][0] == [3, 4, 5]
