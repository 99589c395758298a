"""Whatever bytes come: each call is answered, with PaddleNLP's words or the protocol's, and the next one is served."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scripted_api import ScriptedApi, scripted_api
from support.served import free_ports
from support.triton import PATIENCE
from tritonclient.grpc import service_pb2

from oarlock_runtime.models.tokenizer import Tokenizer

Infer = Callable[[bytes], Any]


@pytest.fixture(scope="module")
def hostile(tokenizer: Tokenizer) -> Iterator[tuple[ScriptedApi, grpc.Channel]]:
    port = free_ports(1)[0]
    with (
        scripted_api(tokenizer, grpc_port=port, body_limit=1 << 16) as api,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield api, channel


def infer(channel: grpc.Channel, message: bytes) -> tuple[grpc.StatusCode, str, Any]:
    """(status, its words, the document of OUT) of a unary call with any bytes."""
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        answer = service_pb2.ModelInferResponse.FromString(call(message, timeout=PATIENCE))
    except grpc.RpcError as error:
        return error.code(), error.details(), None
    return grpc.StatusCode.OK, "", json.loads(answer.raw_output_contents[0][4:])


def stream(channel: grpc.Channel, messages: list[bytes]) -> list[Any]:
    call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    return [service_pb2.ModelStreamInferResponse.FromString(one) for one in call(iter(messages), timeout=PATIENCE)]


def message_of(payload: bytes = b"[{}]", **changes: Any) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=changes.pop("model", "model"))
    raw = changes.pop("raw", [len(payload).to_bytes(4, "little") + payload])
    for name in changes.pop("names", ["IN"]):
        request.inputs.add(name=name, datatype=changes.get("datatype", "BYTES"), shape=changes.get("shape", [1]))
    contents = changes.pop("contents", None)
    if contents is not None:
        request.inputs[0].contents.bytes_contents.extend(contents)
    for name in changes.pop("outputs", []):
        request.outputs.add(name=name)
    request.raw_input_contents.extend(raw)
    return bytes(request.SerializeToString())


WRONG = {
    "no message": (b"\xff\xff\xff", "no ModelInferRequest"),
    "another model": (message_of(model="x"), "unknown model: 'x'"),
    "no inputs": (message_of(names=[], raw=[]), "expected 1 input"),
    "two inputs": (message_of(names=["IN", "IN"]), "expected 1 input"),
    "another input": (message_of(names=["in"]), "unexpected inference input 'in'"),
    "another output": (message_of(outputs=["out"]), "unexpected inference output 'out'"),
    "numbers": (message_of(datatype="INT32"), "datatype 'INT32'; it must be BYTES"),
    "no shape": (message_of(shape=[]), "shape []; it must be [1]"),
    "another shape": (message_of(shape=[1, 1]), "shape [1, 1]; it must be [1]"),
    "a huge shape": (message_of(shape=[1 << 62] * 100), "it must be [1]"),
    "no element": (message_of(raw=[]), "0 elements"),
    "an empty element": (message_of(raw=[b""]), "has 0 bytes"),
    "too long a length": (message_of(raw=[b"\xff\xff\xff\xffab"]), "has 6 bytes"),
    "two elements": (message_of(raw=[b"\x01\0\0\0a\x01\0\0\0b"]), "has 10 bytes"),
    "two raw contents": (message_of(raw=[b"\0\0\0\0"] * 2), "2 entries for 1 input"),
    "both contents": (message_of(contents=[b"[]"]), "both"),
    "two of its own": (message_of(raw=[], contents=[b"[]", b"[]"]), "2 elements"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit_are_refused_with_what_would(
    hostile: tuple[ScriptedApi, grpc.Channel], name: str
) -> None:
    message, words = WRONG[name]
    status, told, _ = infer(hostile[1], message)
    assert words in told
    assert status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    # On a stream it is one answer's error, and the next request of the stream is served.
    refused, served = stream(hostile[1], [message, message_of(b'[{"req_id": 1}]')])
    if words in served.error_message:
        refused, served = served, refused
    assert words in refused.error_message and not refused.infer_response.raw_output_contents
    assert "either `text`" in json.loads(served.infer_response.raw_output_contents[0][4:])["error_msg"]


def test_a_message_above_the_limit_is_refused(hostile: tuple[ScriptedApi, grpc.Channel]) -> None:
    status, _, _ = infer(hostile[1], message_of(b"x" * (1 << 18)))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert infer(hostile[1], message_of(b'[{"req_id": 1}]'))[0] is grpc.StatusCode.OK


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = (
    "text req_id input_ids messages max_dec_len min_dec_len topp top_p temperature penalty_score eos_token_ids "
    "stop_sequences infer_seed seed timeout stream benchmark"
)
FIELDS = st.sampled_from(NAMES.split())
DOCUMENTS = st.one_of(JSON, st.lists(st.dictionaries(FIELDS, JSON, max_size=6), max_size=2))
PAYLOADS = st.one_of(st.binary(max_size=64), DOCUMENTS.map(lambda document: json.dumps(document).encode()))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(payload=PAYLOADS)
@pytest.mark.conformance(19)
def test_any_payload_is_answered(hostile: tuple[ScriptedApi, grpc.Channel], payload: bytes) -> None:
    status, _, document = infer(hostile[1], message_of(payload))
    assert status is grpc.StatusCode.OK
    if isinstance(document, dict):
        assert document["error_code"] in (200, 501) and isinstance(document["error_msg"], str)
    else:
        assert document[0]["is_end"] == 1


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(message=st.binary(max_size=200))
def test_any_bytes_are_answered(hostile: tuple[ScriptedApi, grpc.Channel], message: bytes) -> None:
    assert infer(hostile[1], message)[0] in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert len(stream(hostile[1], [message])) == 1


SCALARS = (None, True, False, 0, 1, -1, 7, 512, 1 << 40, 1 << 70, 0.5, -0.5, 1e300, "", "a", "user", "\ud800", [], {})


def random_payload(source: random.Random) -> bytes:
    if source.random() < 0.1:
        return source.randbytes(source.randrange(40))
    fields: dict[str, Any] = source.choice([{"text": "a"}, {"input_ids": [5]}, {"messages": [{"content": "hi"}]}, {}])
    fields = {**fields, "req_id": source.randrange(1 << 60), "max_dec_len": 2}
    for name in source.sample(NAMES.split(), source.randrange(3)):
        values = source.choices(SCALARS, k=2)
        fields[name] = source.choice([values[0], values, {"content": values[1]}])
    document = [fields] * source.choice((1, 1, 1, 1, 0, 2))
    return json.dumps(document if source.random() < 0.95 else source.choice(SCALARS)).encode()


def random_message(source: random.Random) -> bytes:
    """Mostly a payload in the right tensor; now and then another tensor, or bytes of any kind."""
    payload = random_payload(source)
    if source.random() < 0.8:
        return message_of(payload)
    changes: dict[str, Any] = {
        "datatype": source.choice(["INT64", "", "BYTES" * 50]),
        "shape": [source.choice([0, -1, 2, 1 << 62]) for _ in range(source.randrange(4))],
        "names": source.choice([[], ["OUT"], ["IN"] * 3]),
        "raw": [source.randbytes(source.randrange(12)) for _ in range(source.randrange(3))],
        "outputs": ["x"],
        "model": source.choice(["", "x" * 500]),
    }
    name = source.choice(list(changes))
    message = message_of(payload, **{name: changes[name]})
    return message if source.random() < 0.7 else source.randbytes(len(message) % 50)


@pytest.mark.conformance(19)
def test_random_tensors_on_streams_are_all_answered(
    hostile: tuple[ScriptedApi, grpc.Channel], request: pytest.FixtureRequest
) -> None:
    api, channel = hostile
    source = random.Random(1)
    left = request.config.getoption("--bodies")
    while left:
        messages = [random_message(source) for _ in range(min(left, 250))]
        answers = stream(channel, messages)
        left -= len(messages)
        ends = [one for one in answers if one.error_message or final(one)]
        assert len(ends) == len(messages)
        for one in ends:
            if not one.error_message:
                document = json.loads(one.infer_response.raw_output_contents[0][4:])
                if isinstance(document, dict):
                    assert document["error_code"] == 200, document
    assert not api.service.live and not len(api.service.calls)
    assert infer(channel, message_of(b'[{"text": "a", "req_id": 1}]'))[2][0]["is_end"] == 1


def final(answer: Any) -> bool:
    return bool(answer.infer_response.parameters["triton_final_response"].bool_param)
