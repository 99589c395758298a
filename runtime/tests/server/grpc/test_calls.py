"""The calls of the inference service, by Triton's own client."""

import json
import threading
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.scripted_api import ScriptedApi, scripted_api
from support.served import free_ports, until
from support.triton import PATIENCE, client_of, stream_of, tensor

from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.grpc import endpoint
from oarlock_runtime.server.service import State

Client = triton.InferenceServerClient
GREEDY = {"text": "hi", "topp": 0, "max_dec_len": 30}
SERVICE = "inference.GRPCInferenceService"


@pytest.mark.conformance(19)
def test_it_tells_that_it_lives_and_is_ready_and_what_it_serves(api: ScriptedApi, client: Client) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("model", "1")
    assert client.get_server_metadata().name == "oarlock"
    metadata = client.get_model_metadata("model", as_json=True)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "IN", "datatype": "BYTES", "shape": ["1"]}]
    assert metadata["outputs"] == [{"name": "OUT", "datatype": "BYTES", "shape": ["1"]}]
    config = client.get_model_config(api.service.model).config
    assert config.model_transaction_policy.decoupled and config.max_batch_size == 0
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("IN", 13, [1])]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [("OUT", 13, [1])]
    for name, version in (("other", ""), ("model", "2")):
        with pytest.raises(triton.InferenceServerException, match="unknown model") as refused:
            client.is_model_ready(name, version)
        assert refused.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.conformance(18)
def test_a_stream_gives_frames_and_marks_the_last(api: ScriptedApi, client: Client) -> None:
    with stream_of(client) as stream:
        stream.send({**GREEDY, "req_id": "one"}, request_id="mine")
        seen = []
        final = False
        while not final:
            document, final, request_id = stream.next()
            assert request_id == "mine" and len(document) == 1
            seen.append(document[0])
        assert [frame["is_end"] for frame in seen] == [0] * (len(seen) - 1) + [1]
        assert "".join(frame["token"] for frame in seen) == seen[-1]["tokens_all"] == api.client.text
        assert {frame["req_id"] for frame in seen} == {"one"}
        assert "error_code" not in seen[0]


@pytest.mark.conformance(18, 19)
def test_many_requests_share_a_stream_and_a_bad_one_ends_itself_alone(api: ScriptedApi, client: Client) -> None:
    api.client.pace = 0.005
    with stream_of(client) as stream:
        for number in range(20):
            stream.send({**GREEDY, "req_id": number}, request_id=str(number))
        stream.send({"text": "", "req_id": "bad"}, request_id="bad")
        texts: dict[str, str] = {}
        errors = []
        left = 21
        order = []
        while left:
            document, final, request_id = stream.next()
            left -= final
            if isinstance(document, dict):
                errors.append(document)
            else:
                texts[request_id] = texts.get(request_id, "") + document[0]["token"]
                order.append(request_id)
        assert texts == {str(number): api.client.text for number in range(20)}
        assert [error["req_id"] for error in errors] == ["bad"] and errors[0]["error_code"] == 200
        assert order != sorted(order, key=int), "they ran one after the other"


@pytest.mark.conformance(19)
def test_an_answer_without_streaming_is_the_whole_text(api: ScriptedApi, client: Client) -> None:
    document = json.loads(client.infer("model", [tensor([{**GREEDY, "req_id": 7}])]).as_numpy("OUT")[0])
    assert document[0]["tokens_all"] == document[0]["token"] == api.client.text
    assert (document[0]["req_id"], document[0]["is_end"]) == (7, 1)
    refused = json.loads(client.infer("model", [tensor([{"req_id": 8}])]).as_numpy("OUT")[0])
    assert refused["error_code"] == 200 and "either `text`" in refused["error_msg"]
    statistics = client.get_inference_statistics("model").model_stats[0]
    assert (statistics.inference_count, statistics.inference_stats.fail.count) == (1, 1)
    assert statistics.inference_stats.success.ns > 0 and statistics.last_inference > 0
    assert client.get_inference_statistics().model_stats[0].name == "model"


def test_contents_of_the_tensor_itself_are_read_too(api: ScriptedApi) -> None:
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name="model")
    given = request.inputs.add(name="IN", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(json.dumps([{**GREEDY, "req_id": "c"}]).encode())
    with grpc.insecure_channel(f"127.0.0.1:{api.settings.grpc_port}") as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE)
    assert json.loads(answer.raw_output_contents[0][4:])[0]["tokens_all"] == api.client.text


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_a_stream_that_ends_aborts_its_requests_or_waits_for_them(api: ScriptedApi, client: Client, how: str) -> None:
    api.client.pace = 0.02
    api.client.text = "x" * 60
    with stream_of(client) as stream:
        for number in range(3):
            stream.send({**GREEDY, "req_id": number, "max_dec_len": 100})
        stream.next()
        until(lambda: api.client.running == 3)
        client.stop_stream(cancel_requests=how == "cancelled")
        until(lambda: api.client.running == 0 and len(api.service.calls) == 0)
        aborted = api.client.aborted
    assert aborted == (3 if how == "cancelled" else 0)
    assert not api.service.live


def test_a_time_limit_of_the_client_ends_the_stream_and_its_requests(api: ScriptedApi, client: Client) -> None:
    api.client.pace = 5.0
    with stream_of(client, stream_timeout=0.5) as stream:
        stream.send({**GREEDY, "req_id": "late"})
        with pytest.raises(triton.InferenceServerException, match="Deadline"):
            stream.next()
    until(lambda: len(api.service.calls) == 0)


def test_a_reader_that_takes_nothing_is_dropped_and_others_are_served(tokenizer: Tokenizer) -> None:
    port = free_ports(1)[0]
    with scripted_api(tokenizer, grpc_port=port, slow_reader_seconds=0.5) as api:
        api.client.text = "y" * 400
        api.client.pace = 0.01
        stopped = threading.Event()
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.http2.bdp_probe", 0)]) as channel:
            from tritonclient.grpc import service_pb2

            def requests() -> Any:
                for number in range(60):
                    request = service_pb2.ModelInferRequest(model_name="model")
                    given = request.inputs.add(name="IN", datatype="BYTES", shape=[1])
                    fields = {**GREEDY, "req_id": number, "max_dec_len": 400}
                    given.contents.bytes_contents.append(json.dumps([fields]).encode())
                    yield request
                stopped.wait(PATIENCE)

            call = channel.stream_stream(
                f"/{SERVICE}/ModelStreamInfer",
                request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
            )(requests(), timeout=PATIENCE)
            until(lambda: len(api.client.added) >= 50)
            until(lambda: len(api.service.calls) == 0)
            assert api.client.aborted > 50
            with client_of(f"127.0.0.1:{port}") as other:
                assert other.infer("model", [tensor([{**GREEDY, "req_id": "other"}])]).as_numpy("OUT") is not None
            with pytest.raises(grpc.RpcError) as dropped:
                list(call)
            assert dropped.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            stopped.set()


def test_a_stream_reads_no_more_requests_than_it_may_have_at_once(tokenizer: Tokenizer) -> None:
    port = free_ports(1)[0]
    with (
        scripted_api(tokenizer, grpc_port=port, max_sequences=2, queue_limit=2) as api,
        client_of(f"127.0.0.1:{port}") as client,
    ):
        api.client.pace = 0.005
        with stream_of(client) as stream:
            for number in range(12):
                stream.send({**GREEDY, "req_id": number})
            most, left = 0, 12
            while left:
                _, final, _ = stream.next()
                left -= final
                most = max(most, api.client.running)
        assert most <= 5 and len(api.client.added) == 12


def test_calls_over_the_limit_and_without_a_key_are_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MOST_CALLS", 1)
    port = free_ports(1)[0]
    with (
        scripted_api(tokenizer, grpc_port=port, api_key="secret") as api,
        client_of(f"127.0.0.1:{port}") as client,
    ):
        assert client.is_server_ready()
        key = {"authorization": "Bearer secret"}
        for headers in (None, {"authorization": "Bearer wrong"}):
            with pytest.raises(triton.InferenceServerException, match="API key") as refused:
                client.infer("model", [tensor([GREEDY])], headers=headers, client_timeout=PATIENCE)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        api.client.pace = 0.02
        with stream_of(client, headers=key) as stream:
            stream.send({**GREEDY, "req_id": "first"})
            stream.next()
            with client_of(f"127.0.0.1:{port}") as other, pytest.raises(triton.InferenceServerException) as full:
                other.infer("model", [tensor([{**GREEDY, "req_id": "second"}])], headers=key, client_timeout=PATIENCE)
            assert full.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


@pytest.mark.conformance(20)
def test_a_full_queue_is_told_as_paddlenlp_tells_it(api: ScriptedApi, client: Client) -> None:
    api.client.seats = 0
    limit = api.settings.queue_limit
    with stream_of(client) as stream:
        stream.send({**GREEDY, "req_id": "one"})
        document, final, _ = stream.next()
        assert final and document["error_msg"] == f"cached task num ({limit}) exceeds the limit ({limit})"


def health_of(api: ScriptedApi, service: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{api.settings.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE).status)


@pytest.mark.conformance(19)
def test_the_health_service_follows_whether_calls_are_served(api: ScriptedApi, client: Client) -> None:
    for name in ("", SERVICE):
        until(lambda name=name: health_of(api, name) == health_pb2.HealthCheckResponse.SERVING)
    api.loop.call_soon_threadsafe(api.service.close, State.DRAINING)
    until(lambda: health_of(api) == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert client.is_server_live() and not client.is_server_ready() and not client.is_model_ready("model")
    with stream_of(client) as stream:
        stream.send({**GREEDY, "req_id": "late"})
        document, final, _ = stream.next()
    assert final and document["error_code"] == 500 and "shutting down" in document["error_msg"]
