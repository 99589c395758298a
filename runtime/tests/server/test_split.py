"""One model over two hosts, as processes on this machine's loopback addresses: it serves, fails and ends as one."""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.paddle_split import split_directory
from support.served import START_SECONDS, Served, alive, free_ports, until

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.random_tokenizer import copy_tokenizer

HEARTBEAT = 5


@contextmanager
def split(models: Sequence[Path], cache: Path, ready: bool = True) -> Iterator[list[Served]]:
    """Both hosts with the model as each has it, the second started first; rank 0's is the first of the list."""
    group = ["--nnodes", "2", "--pod-ips", "127.0.0.1,127.0.0.2", "--pod-0-ip", "127.0.0.1"]
    group += ["--group-port", str(free_ports(1)[0]), "--heartbeat-seconds", str(HEARTBEAT)]
    hosts = [Served(models[rank], cache, *group, "--host-ip", f"127.0.0.{rank + 1}") for rank in (1, 0)][::-1]
    try:
        for host in hosts if ready else ():
            host.wait_ready()
        yield hosts
    finally:
        for host in hosts:
            host.process.kill()
            host.wait()


def complete(host: Served, tokens: int) -> httpx.Response:
    body = {"prompt": "one two", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return httpx.post(host.url + "/v1/completions", json=body, timeout=START_SECONDS)


def test_two_hosts_answer_and_leave_together(tiny_model: Path, tmp_path: Path) -> None:
    with split([tiny_model] * 2, tmp_path) as (first, second):
        assert complete(first, 20).json()["usage"]["completion_tokens"] == 20
        assert [host.health("ready") for host in (first, second)] == [0, 0]
        assert set(second.children()) == {"worker_process"}
        with pytest.raises(httpx.TransportError):
            httpx.get(second.url + "/v1/models", timeout=5)
        assert "rank 1 of 2; 127.0.0.1 answers clients" in second.output
        second.signal(signal.SIGTERM)  # goes on until rank 0 has finished
        until(lambda: "rank 0 has 30 s to finish its requests" in second.output)
        assert complete(first, 5).status_code == 200
        first.signal(signal.SIGTERM)
        assert [host.wait() for host in (first, second)] == [0, 0]
        assert "stopped: rank 0 has ended" in second.output


def test_hosts_that_have_their_own_ranks_files_alone(tiny_model: Path, tmp_path: Path) -> None:
    """As an exported model is fetched for two nodes: one has rank_0, the other rank_1."""
    source = open_checkpoint(tiny_model)
    models = [split_directory(tmp_path / f"host-{rank}", source, 2, range(rank, rank + 1)) for rank in range(2)]
    for model in models:
        copy_tokenizer(tiny_model, model)
    with split(models, tmp_path) as hosts:
        assert complete(hosts[0], 20).json()["usage"]["completion_tokens"] == 20
        sampled = {"prompt": "one two", "max_tokens": 20, "ignore_eos": True, "temperature": 1, "seed": 3, "top_p": 0.9}
        texts = [httpx.post(hosts[0].url + "/v1/completions", json=sampled, timeout=START_SECONDS) for _ in range(2)]
        assert texts[0].json()["choices"] == texts[1].json()["choices"]


def test_files_that_are_cut_otherwise_are_refused_on_both_sides(tiny_model: Path, tmp_path: Path) -> None:
    second = split_directory(tmp_path / "second", open_checkpoint(tiny_model), 2, range(1, 2))
    with split([tiny_model, second], tmp_path, ready=False) as hosts:
        assert [host.wait(START_SECONDS) for host in hosts] == [1, 1]
        assert all("has files for ranks 2, rank 0 has 1" in host.output for host in hosts)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_cannot_open_its_model_tells_the_other(tiny_model: Path, tmp_path: Path, rank: int) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    for weights in broken.glob("*.safetensors"):
        weights.write_bytes(b"no weights")
    models = [tiny_model, tiny_model]
    models[rank] = broken
    with split(models, tmp_path, ready=False) as hosts:
        assert [host.wait(START_SECONDS) for host in hosts] == [1, 1]
        assert f"rank {rank} (127.0.0.{rank + 1}) can't take part: " in hosts[1 - rank].output


def call_until_it_fails(host: Served, answers: list[int]) -> None:
    """One request after another; the status of each, until one fails or nobody listens any more."""
    with contextlib.suppress(httpx.TransportError):
        while not answers or answers[-1] == 200:
            answers.append(complete(host, 100).status_code)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", ["engine_process", "worker_process"])
def test_a_rank_that_fails_ends_all(tiny_model: Path, tmp_path: Path, victim: str, sent: signal.Signals) -> None:
    with split([tiny_model] * 2, tmp_path) as hosts:
        pids = {name: pid for host in hosts for name, pid in host.children().items()}
        answers: list[int] = []
        caller = threading.Thread(target=call_until_it_fails, args=(hosts[0], answers))
        caller.start()
        until(lambda: bool(answers))
        os.kill(pids[victim], sent)
        assert [host.wait(3 * HEARTBEAT) for host in hosts] == [1, 1]
        caller.join(START_SECONDS)
        assert not caller.is_alive()
        assert set(answers) <= {200, 500, 503}
        told = "".join(host.output for host in hosts)
        if sent is signal.SIGSTOP:
            assert "has been silent for" in told
        else:
            assert "was killed by signal 9" in told and "is lost" in told
        assert not any(alive(pid) for pid in pids.values())
