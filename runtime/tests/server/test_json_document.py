"""Bodies full of lists are refused before they are decoded; brackets in texts count for nothing."""

import json
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted_api import scripted_api

from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.json_document import MAX_PARTS, CrowdedError, check_crowd, decode
from oarlock_runtime.server.json_document import _parts as parts

CROWD = b"[" + b"[]," * (4 << 18) + b"[]]"


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count, value.values()))
    return 1 + sum(map(count, value)) if isinstance(value, list) else 0


@given(
    st.recursive(
        st.none() | st.text(st.sampled_from('[{"\\]}a:é')),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('{"\\')), inner),
    )
)
def test_parts_are_counted_outside_of_strings(value: Any) -> None:
    assert parts(json.dumps(value).encode(), MAX_PARTS) == count(value)
    assert decode(json.dumps(value).encode()) == value


def test_a_crowd_is_refused_but_a_text_of_brackets_is_not() -> None:
    with pytest.raises(CrowdedError):
        decode(CROWD)
    check_crowd(b"[" + b"[]," * (MAX_PARTS - 2) + b"0]")
    with pytest.raises(CrowdedError):
        decode(json.dumps(dict.fromkeys(map(str, range(MAX_PARTS)))).encode())
    text = json.dumps({"text": '["' * (1 << 19)}).encode()
    assert len(decode(text)["text"]) == 1 << 20
    assert parts(b'["' + b"[" * (1 << 19) + b'",[]]', MAX_PARTS) == 2  # a string over several pieces
    with pytest.raises(msgspec.DecodeError):
        decode(b"[" * 10)


@pytest.mark.parametrize("field", ["x", "messages", "metadata"])
def test_a_crowd_is_refused_over_http(tokenizer: Tokenizer, field: str) -> None:
    with scripted_api(tokenizer) as api:
        for path, start in (("/v1/completions", b""), ("/v1/chat/completions", b'"model": "default",')):
            body = b"{" + start + b'"%s":%s}' % (field.encode(), CROWD)
            error = httpx.post(api.url + path, content=body, timeout=20).json()["error"]
            assert "lists, objects" in error["message"]
        answer = httpx.post(api.url + "/v1/chat/completions", content=b'{"text":%s}' % CROWD, timeout=20).json()
        assert answer["error_code"] == 400 and "lists, objects" in answer["error_msg"]
