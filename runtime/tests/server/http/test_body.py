"""Bodies: what is refused, by which name and with which words."""

import json
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.http.body import parse
from oarlock_runtime.server.http.fields import REFUSED, ChatFields, CompletionFields


def refused(body: bytes | dict[str, Any], kind: type[Any] = ChatFields) -> RequestError:
    with pytest.raises(RequestError) as error:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    return error.value


def test_every_field_of_openais_schema_works_is_a_hint_or_is_refused_by_name() -> None:
    for module, kind in ((chat_create_params, ChatFields), (completion_create_params, CompletionFields)):
        names = {*module.CompletionCreateParamsBase.__annotations__, "stream"}
        known = {*kind.__struct_fields__, *REFUSED}
        assert not names - known


def test_null_means_absent() -> None:
    names = {*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__, *REFUSED}
    assert parse(json.dumps(dict.fromkeys(names)).encode(), ChatFields) == ChatFields()
    assert parse(json.dumps(dict.fromkeys(names)).encode(), CompletionFields) == CompletionFields()


def test_harmless_values_of_refused_fields_are_passed_over() -> None:
    body = {"tools": [], "tool_choice": "auto", "modalities": ["text"], "n": 2}
    assert parse(json.dumps(body).encode(), ChatFields) == ChatFields(n=2)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"", "", "empty"),
        (b"  ", "", "empty"),
        (b"{", "", "truncated"),
        (b"[]", "", "a list"),
        (b"null", "", "null"),
        (b'{"temperature": NaN}', "", "not valid JSON"),
        (b'{"temperature": 1e999}', "temperature", "out of range"),
        (b'{"user": "\\ud800"}', "", "not valid JSON"),
        (b'{"user": "\xff"}', "", "UTF-8"),
        (b'{"user": ' + b"[" * 100_000, "", ""),
        ({"max_tokens": "7"}, "max_tokens", "the string '7'; it must be an integer"),
        ({"max_tokens": True}, "max_tokens", "true; it must be an integer"),
        ({"max_tokens": 1.5}, "max_tokens", "1.5; it must be an integer"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stop": ["a", 1]}, "stop[1]", "1; it must be a string"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": "x"}}, "logit_bias", "it must be a number"),
        ({"messages": "hi"}, "messages", "it must be a list"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user", "contents": "hi"}]}, "messages[0].contents", "unknown"),
        ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "messages[0].content[0].type", "missing"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown"),
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"audio": {}}, "audio", "only text"),
    ],
)
def test_errors_name_the_field_the_value_and_what_is_right(body: Any, field: str, words: str) -> None:
    error = refused(body)
    assert error.status == 400
    assert error.field == field
    assert words in error.message
    assert len(error.message) < 400


def test_prompts_in_all_forms() -> None:
    for prompt in ("a", ["a", "b"], [1, 2], [[1], [2, 3]]):
        fields = parse(json.dumps({"prompt": prompt}).encode(), CompletionFields)
        assert fields.prompt == prompt
    assert refused({"prompt": [["a"]]}, CompletionFields).field == "prompt[0][0]"
    assert refused({"prompt": {}}, CompletionFields).field == "prompt"
