"""What a request may ask for, and what is said of the rest."""

from typing import Any

import msgspec
import pytest

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError


def test_defaults_are_valid_and_survive_the_wire() -> None:
    params = SamplingParams(logit_bias={3: -100.0}, stop_token_ids=(1, 2), seed=(1 << 64) - 1)
    params.validate(100)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
    assert not params.penalized and SamplingParams(frequency_penalty=0.1).penalized


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", -1, "max_tokens is -1; it must be from 0 to"),
        ("min_tokens", 17, "it must be from 0 to 16"),
        ("temperature", float("nan"), "temperature is nan; it must be from 0 to 100"),
        ("temperature", -0.1, "from 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_k", -2, "from -1"),
        ("min_p", 1.5, "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("presence_penalty", 2.1, "from -2 to 2"),
        ("frequency_penalty", float("inf"), "from -2 to 2"),
        ("seed", 1 << 64, "seed is"),
        ("top_logprobs", 21, "from -1 to 20"),
        ("prompt_logprobs", 21, "from -1 to 20"),
        ("stop_token_ids", (100,), "stop_token_ids is 100; it must be from 0 to 99"),
        ("stop_token_ids", tuple(range(65)), "has 65 entries; at most 64"),
        ("logit_bias", {100: 1.0}, "logit_bias is 100"),
        ("logit_bias", {1: 101.0}, "logit_bias.1 is 101.0; it must be from -100 to 100"),
    ],
)
def test_values_out_of_range_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**{field: value}).validate(100)
    assert error.value.field.startswith(field) and message in error.value.message and error.value.status == 400
