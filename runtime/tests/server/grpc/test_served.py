"""gRPC of the whole server with its processes: a shared port, gRPC alone, drain, loading."""

import json
import os
import signal
import socket
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.served import Served, free_ports, served, until
from support.triton import PATIENCE, client_of, stream_of, tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.ports import hold, is_free
from oarlock_runtime.settings import Settings

SHORT = {"text": "hi", "topp": 0, "max_dec_len": 3}
LONG = {"text": "hi", "topp": 0, "max_dec_len": 300, "min_dec_len": 300}


def infer_alone(address: str, name: str) -> int:
    """A request over a connection of its own; how many its server process has answered since it was started."""
    request = service_pb2.ModelInferRequest(model_name="model")
    given = request.inputs.add(name="IN", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(json.dumps([{**SHORT, "req_id": name}]).encode())
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=PATIENCE)
        assert json.loads(answer.raw_output_contents[0][4:])[0]["is_end"] == 1
        statistics = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="model"), timeout=PATIENCE)
        return int(statistics.model_stats[0].inference_count)


def test_server_processes_share_the_port(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path, "--server-processes", "2") as server:
        counts = [infer_alone(server.grpc_address, str(number)) for number in range(16)]
        assert counts != list(range(1, 17)), "one process answered them all"
        assert server.metric('oarlock_requests_total{endpoint="grpc",outcome="200"}') == 16


@pytest.mark.conformance(19)
def test_grpc_alone_has_no_http(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path, "--port", "-1") as server:
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/v1/models", timeout=5)
        assert "Oarlock is ready: grpc://" in server.output
        assert infer_alone(server.grpc_address, "one") == 1


@pytest.mark.conformance(18, 19)
def test_running_requests_finish_after_sigterm_and_new_ones_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path) as server, client_of(server.grpc_address) as client:
        with stream_of(client) as stream:
            for number in range(8):
                stream.send({**LONG, "req_id": number})
            running = set()
            while len(running) < 8:
                document, final, _ = stream.next()
                assert isinstance(document, list) and not final
                running.add(document[0]["req_id"])
            engine = server.children()["engine_process"]
            os.kill(engine, signal.SIGSTOP)  # so that they are still running when the server is told to end
            server.signal(signal.SIGTERM)
            until(lambda: not client.is_server_ready())
            with grpc.insecure_channel(server.grpc_address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
                until(lambda: check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == not_serving)
            stream.send({**SHORT, "req_id": "late"}, request_id="late")
            os.kill(engine, signal.SIGCONT)
            ends = []
            while len(ends) < 9:
                document, final, request_id = stream.next()
                if final:
                    ends.append((request_id, document))
        late = [(name, end["error_code"]) for name, end in ends if isinstance(end, dict)]
        assert late == [("late", 500)]
        assert all(end[0]["tokens_all_num"] == 301 for _, end in ends if isinstance(end, list))
        assert server.wait() == 0 and "the drain time is over" not in server.output


@pytest.mark.conformance(19)
def test_it_is_not_ready_while_the_model_loads(tiny_model: Path, tmp_path: Path) -> None:
    server = Served(tiny_model, tmp_path)
    try:
        until(lambda: any("server_process" in name for name in server.children()))
        with client_of(server.grpc_address) as client:
            seen = False
            while not seen:  # from the first moment that it answers
                try:
                    seen = client.is_server_live()
                    ready = client.is_server_ready()
                except triton.InferenceServerException as error:
                    assert error.status() == "StatusCode.UNAVAILABLE"
            if not ready:
                refused = json.loads(client.infer("model", [tensor([{**SHORT, "req_id": 1}])]).as_numpy("OUT")[0])
                assert isinstance(refused, list) or refused["error_code"] == 500
            server.wait_ready()
            assert client.is_server_ready() and client.is_model_ready("model")
    finally:
        server.process.kill()
        server.wait()


def test_a_port_that_is_held_is_taken_but_for_its_holders_processes() -> None:
    settings = Settings(grpc_port=free_ports(1)[0])
    with hold(settings, "grpc_port"):
        assert not is_free(settings.host, settings.grpc_port)
        with pytest.raises(SettingError, match=r"--grpc-port. is in use"):
            hold(settings, "grpc_port")
        with socket.create_server((settings.host, settings.grpc_port), reuse_port=True):
            assert not is_free(settings.host, settings.grpc_port)
    assert is_free(settings.host, settings.grpc_port)
