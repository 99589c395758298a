"""The whole server with its processes: start, health, metrics, drain, and every way to die."""

import json
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.served import Served, alive, free_ports, served, until

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.supervisor import main
from oarlock_runtime.settings import Settings

LONG = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that tests share and leave as they found it."""
    cache = tmp_path_factory.mktemp("cache")
    with served(tiny_model, cache, "--server-processes", "2", "--heartbeat-seconds", "1.5") as server:
        yield server


def test_it_is_ready_with_configuration_and_progress_told(running: Served) -> None:
    assert "max_sequences" in running.output and "loading weights 100%" in running.output
    assert f"Oarlock is ready: {running.url}/v1" in running.output
    assert (running.health("live"), running.health("ready")) == (0, 0)


def test_the_official_client_gets_the_same_answer_streamed_and_not(running: Served) -> None:
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(model="default", prompt="hello", max_tokens=20, temperature=0)
        chunks = client.completions.create(model="default", prompt="hello", max_tokens=20, temperature=0, stream=True)
        assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks)
        seeded = [
            client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "hi"}], n=3, seed=5, max_tokens=9, temperature=50
            )
            for _ in range(2)
        ]
        texts = [[choice.message.content for choice in answer.choices] for answer in seeded]
        assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_an_answer_follows_a_json_schema_and_a_bad_schema_is_its_requests_alone(running: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as client:
        for stream in (False, True):
            answer: Any = client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": "hi"}],
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
                seed=1,
                max_tokens=120,
                stream=stream,
            )
            parts = [chunk.choices[0].delta.content or "" for chunk in answer] if stream else []
            assert json.loads("".join(parts) or answer.choices[0].message.content)["n"] in (1, 22)
        # What only the engine finds out is still a 400.
        costly = {"type": "integer", "multipleOf": 999983, "minimum": 1}
        with pytest.raises(openai.BadRequestError, match="JSON schema can't be used"):
            client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": "hi"}],
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": costly}},
            )


def test_two_hundred_clients_that_leave_free_every_block(running: Served) -> None:
    chance = random.Random(1)
    for _ in range(200):
        body = json.dumps({**LONG, "stream": chance.random() < 0.5, "n": chance.choice([1, 1, 2])}).encode()
        opened = socket.create_connection(("127.0.0.1", running.api_port))
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if chance.random() < 0.3:
            opened.settimeout(5)
            opened.recv(1)
        opened.close()
    until(lambda: running.metric("oarlock_requests_running") == 0 == running.metric("oarlock_requests_waiting"))
    assert running.metric("oarlock_kv_blocks_used") == 0
    assert running.metric("oarlock_calls_open") == 0


def test_metrics_are_one_page_over_all_processes(running: Served) -> None:
    before = running.metric('oarlock_requests_total{endpoint="completions",outcome="200"}')
    for _ in range(8):
        assert httpx.post(running.url + "/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200
    assert running.metric('oarlock_requests_total{endpoint="completions",outcome="200"}') == before + 8
    page = running.page()
    for name in (
        "oarlock_requests_waiting",
        "oarlock_requests_running",
        "oarlock_kv_usage_ratio",
        "oarlock_prompt_tokens_total",
        "oarlock_generation_tokens_total",
        "oarlock_time_to_first_token_seconds_bucket",
        "oarlock_time_per_output_token_seconds_sum",
        "oarlock_request_seconds_count",
        "oarlock_queue_seconds_bucket",
        "oarlock_preemptions_total",
        "oarlock_prefix_cache_queries_total",
        "oarlock_prefix_cache_hits_total",
        "oarlock_choices_finished_total",
        "oarlock_floor_ratio",
    ):
        assert f"\n{name}" in page, name
    helped = [line.split()[2] for line in page.splitlines() if line.startswith("# HELP")]
    assert len(helped) == len(set(helped))


@pytest.mark.conformance(25, 26)
def test_a_stuck_engine_is_not_ready_but_lives(running: Served) -> None:
    engine = running.children()["engine_process"]
    os.kill(engine, signal.SIGSTOP)
    try:
        until(lambda: running.health("ready") == 3)
        assert running.health("live") == 0
        until(lambda: all(httpx.get(running.url + "/health").status_code == 503 for _ in range(6)))
        refused = httpx.post(running.url + "/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
    finally:
        os.kill(engine, signal.SIGCONT)
    until(lambda: running.health("ready") == 0)
    assert httpx.post(running.url + "/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_drain_finishes_running_streams_and_refuses_new_ones(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path) as server:
        children = server.children()
        os.kill(children["engine_process"], signal.SIGSTOP)  # so that the stream is still running at the signal
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(server.url + "/v1/completions", json=LONG)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.metric("oarlock_calls_open") == 3)
        server.signal(signal.SIGTERM)
        until(lambda: server.health("ready") == 1)
        refused = httpx.post(server.url + "/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
        os.kill(children["engine_process"], signal.SIGCONT)
        assert server.wait() == 0, server.output
        for thread in threads:
            thread.join(10)
        assert [answer.text.endswith("data: [DONE]\n\n") for answer in answers] == [True] * 3
        assert not any(alive(pid) for pid in children.values())


def test_what_outlives_the_drain_time_is_ended_with_an_error(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path, "--drain-seconds", "0.5") as server:
        engine = server.children()["engine_process"]
        os.kill(engine, signal.SIGSTOP)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(httpx.post(server.url + "/v1/completions", json=LONG)))
        thread.start()
        until(lambda: server.metric("oarlock_calls_open") == 1)
        server.signal(signal.SIGTERM)
        thread.join(20)
        assert answers[0].json()["error"]["code"] == "server_stopping"
        assert server.wait() == 0 and "drain time is over" in server.output
        assert not alive(engine)


@pytest.mark.conformance(26)
@pytest.mark.parametrize("victim", ["engine_process", "server_process"])
def test_a_child_that_dies_ends_the_server_with_its_name_and_reason(
    tiny_model: Path, tmp_path: Path, victim: str
) -> None:
    with served(tiny_model, tmp_path, "--server-processes", "2") as server:
        children = server.children()
        os.kill(children[victim], signal.SIGKILL)
        assert server.wait() == 1
        name = "engine" if victim == "engine_process" else "server-0"
        assert f"oarlock: {name} was killed by signal 9 (SIGKILL)" in server.output
        assert not any(alive(pid) for pid in children.values())


def test_a_killed_supervisor_leaves_no_orphan(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path, "--server-processes", "2") as server:
        children = server.children()
        assert len(children) == 3
        server.signal(signal.SIGKILL)
        server.wait()
        until(lambda: not any(alive(pid) for pid in children.values()))


def test_a_second_signal_ends_at_once(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path) as server:
        children = server.children()
        os.kill(children["engine_process"], signal.SIGSTOP)
        opened = socket.create_connection(("127.0.0.1", server.api_port))
        body = json.dumps(LONG).encode()
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: server.metric("oarlock_calls_open") == 1)
        server.signal(signal.SIGTERM)
        until(lambda: server.health("ready") == 1)
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 128 + signal.SIGTERM
        assert not any(alive(pid) for pid in children.values())
        opened.close()


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    server = Served(broken, tmp_path)
    assert server.wait(60) == 1
    assert "oarlock: engine failed: " in server.output or "oarlock: server failed: " in server.output
    assert "broken.gguf" in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize(("words", "name"), [(["/nowhere/m"], "MODEL"), (["--model", "/nowhere/m"], "--model")])
def test_a_model_that_is_not_there_is_named_before_anything_is_started(words: list[str], name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}='/nowhere/m': no such file"):
        main(Settings.load(words, {}))


def test_a_busy_port_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        health, metrics, grpc = free_ports(3)
        others = {"health_port": health, "metrics_port": metrics}
        for share in (1, 2):
            settings = Settings(model=str(tmp_path), port=busy, grpc_port=grpc, server_processes=share, **others)
            with pytest.raises(SettingError, match=f"port {busy} of 127.0.0.1 .--port. is in use"):
                main(settings)
        settings = Settings(model=str(tmp_path), port=free_ports(1)[0], grpc_port=busy, **others)
        with pytest.raises(SettingError, match=f"port {busy} of 127.0.0.1 .--grpc-port. is in use"):
            main(settings)


def test_a_foreign_address_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--host='192\.0\.2\.1' is no address of this machine"):
        main(Settings(model=str(tmp_path), host="192.0.2.1"))


def test_a_full_queue_gives_429_and_the_rest_is_served(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path, "--max-sequences", "1", "--queue-limit", "2") as server:
        engine = server.children()["engine_process"]
        os.kill(engine, signal.SIGSTOP)  # so that all of them are there before the first is taken
        answers: list[httpx.Response] = []
        body = {**LONG, "max_tokens": 20}
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(server.url + "/v1/completions", json=body)))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.metric("oarlock_calls_open") == 12)
        os.kill(engine, signal.SIGCONT)
        for thread in threads:
            thread.join(20)
        refused = [answer for answer in answers if answer.status_code == 429]
        served_well = [answer for answer in answers if answer.status_code == 200]
        assert len(refused) + len(served_well) == 12 and len(served_well) >= 2 and len(refused) >= 5
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all(answer.json()["error"]["type"] == "rate_limit_error" for answer in refused)
        until(lambda: server.metric("oarlock_requests_rejected_total") == len(refused))
