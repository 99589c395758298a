"""The local runner as a user meets it: a process that serves, restarts, updates and leaves nothing behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from operator_support import fake_oarlock
from operator_support.builders import body

from cluster.control_plane import free_port

OPERATOR = Path(__file__).parents[2]


class Runner:
    """`oarlock-operator local` with the fake runtime."""

    def __init__(self, folder: Path, *flags: str, **spec: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.flags = flags
        self.port = free_port()
        self.file = folder / "md.yaml"
        self.state = folder / "state"
        program = folder / "bin" / "oarlock"
        program.parent.mkdir()
        command = shlex.join([sys.executable, fake_oarlock.__file__])  # a checkout may lie in a folder with a space
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
        self.apply(**spec)
        python = folder / "bin" / "python"
        python.symlink_to(sys.executable)
        self.log = folder / "out"
        self.launch()

    def launch(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{OPERATOR}:{':'.join(sys.path)}", "HOME": str(self.folder)}
        command = [self.folder / "bin" / "python", "-m", "oarlock_operator.cli", "local", self.file]
        command += ["--port", str(self.port), "--state", self.state, *self.flags]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def apply(self, **spec: Any) -> None:
        found = body("llm", **spec)
        del found["metadata"]
        self.file.write_text(yaml.safe_dump(found | {"metadata": {"name": "llm"}}))

    def get(self, path: str = "/v1") -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def code(self) -> int:
        """Status of the answer; 0 when nobody answers."""
        try:
            self.get()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except (urllib.error.URLError, ConnectionError):
            return 0
        return 200

    def serves(self) -> bool:
        return self.code() == 200

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def until(self, check: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def members(self) -> list[int]:
        """Pids of the fake servers and downloads of this runner."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"HOME={self.folder}".encode() in variables and b"fake_oarlock" in command:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    runners: list[Runner] = []

    def make(*flags: str, folder: str = "one", **spec: Any) -> Runner:
        runners.append(Runner(tmp_path / folder, *flags, **spec))
        return runners[-1]

    yield make
    for runner in runners:
        if runner.process.poll() is None:
            runner.process.kill()
            runner.process.wait()
        for pid in runner.members():
            os.kill(pid, signal.SIGKILL)


def test_serves_drains_and_leaves_nothing(start: Callable[..., Runner]) -> None:
    runner = start(
        parallelism={"nodes": 2}, server={"maxSequences": 7}, env=[{"name": "FAKE_DOWNLOAD_SECONDS", "value": "1"}]
    )
    runner.until(lambda: runner.code() == 503)
    runner.until(runner.serves)
    found = runner.get()
    first, second = found["POD_IPS"].split(",")
    assert found["POD_0_IP"] == found["HOST_IP"] == first != second
    assert (found["MP_NNODE"], found["MP_NUM"], found["NODE_RANK"], found["BATCH_SIZE"]) == ("2", "2", "0", "7")
    assert len(runner.members()) == 2
    runner.until(lambda: runner.said("ready: http://127.0.0.1"))
    # A request that runs is finished before its group goes.
    streamed: list[bytes] = []

    def stream() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{runner.port}/slow", timeout=10) as answer:
            streamed.append(answer.read())

    reader = threading.Thread(target=stream)
    reader.start()
    time.sleep(0.3)
    runner.process.send_signal(signal.SIGINT)
    assert runner.process.wait(60) == 0, runner.log.read_text()
    reader.join(5)
    assert streamed == [b"x" * 10] and runner.members() == []


def test_a_host_path_is_a_folder_of_this_machine(start: Callable[..., Runner], tmp_path: Path) -> None:
    runner = start(model={"source": "/models/m.gguf", "hostPath": str(tmp_path)})
    runner.until(runner.serves)
    assert runner.get()["MODEL_DIR"] == str(tmp_path / "m.gguf")


def test_a_killed_member_makes_the_group_anew(start: Callable[..., Runner]) -> None:
    runner = start(parallelism={"nodes": 2})
    runner.until(runner.serves)
    leader = runner.get()["pid"]
    worker = next(pid for pid in runner.members() if pid != leader)
    os.kill(worker, signal.SIGKILL)
    runner.until(
        lambda: runner.said("exit code 137: killed by SIGKILL") and runner.serves() and runner.get()["pid"] != leader
    )
    runner.until(lambda: len(runner.members()) == 2 and worker not in runner.members())


def test_a_changed_file_is_rolled_out_without_a_gap(start: Callable[..., Runner]) -> None:
    runner = start()
    runner.until(runner.serves)
    old = runner.get()["pid"]
    runner.apply(server={"maxSequences": 9})

    def updated() -> bool:
        return bool(runner.get()["BATCH_SIZE"] == "9")  # fails if nobody serves at any moment

    runner.until(updated)
    runner.until(lambda: old not in runner.members())
    runner.apply(replicas=-1)
    runner.until(lambda: runner.said("spec.replicas"))
    assert runner.serves()


def test_a_model_that_is_not_there_is_said(start: Callable[..., Runner]) -> None:
    runner = start(model={"source": "http://127.0.0.1:1/missing.gguf"})
    runner.until(lambda: runner.said("http://127.0.0.1:1/missing.gguf answered 404"))
    runner.process.send_signal(signal.SIGINT)
    assert runner.process.wait(60) == 0 and runner.members() == []


def test_a_server_that_cannot_start_uses_up_its_budget(start: Callable[..., Runner]) -> None:
    runner = start(restart={"budget": 1, "backoffSeconds": 1}, env=[{"name": "FAKE_FAIL", "value": "1"}])
    runner.until(lambda: runner.said("RestartBudgetExhausted") and runner.said("out of memory"))


def test_gpus_that_are_not_there_are_said(start: Callable[..., Runner]) -> None:
    runner = start(parallelism={"gpusPerNode": 16})
    runner.until(lambda: runner.said("InsufficientCapacity") and runner.said("GPUs, and"))


def test_no_process_outlives_a_killed_runner(start: Callable[..., Runner]) -> None:
    runner = start(parallelism={"nodes": 2})
    runner.until(runner.serves)
    runner.process.kill()
    runner.process.wait()
    deadline = time.monotonic() + 10
    while runner.members():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_does_not_end_with_a_killed_runner_ends_before_the_next(start: Callable[..., Runner]) -> None:
    runner = start(env=[{"name": "FAKE_STUBBORN", "value": "1"}])
    runner.until(runner.serves)
    stubborn = runner.get()["pid"]
    runner.process.kill()
    runner.process.wait()
    assert stubborn in runner.members()
    runner.apply()
    runner.launch()
    runner.until(runner.serves)
    assert runner.get()["pid"] != stubborn and stubborn not in runner.members()


def test_two_runners_side_by_side(start: Callable[..., Runner]) -> None:
    runners = [start(replicas=2, server={"threads": 3}), start("--set", "server.maxSequences=5", folder="two")]
    for runner in runners:
        runner.until(lambda runner=runner: runner.said("RolloutComplete"))
    # Replicas take turns, and every member has an address of its own.
    answers = [runner.get() for runner in runners for _ in range(2)]
    assert len({answer["HOST_IP"] for answer in answers}) == len({answer["pid"] for answer in answers}) == 3
    assert answers[2]["BATCH_SIZE"] == "5"
    # Those of one runner share the machine, unless the spec says how much each gets.
    shares = [(answer["OARLOCK_KV_MEMORY_SHARE"], answer["OARLOCK_THREADS"]) for answer in answers[1:3]]
    assert shares == [("0.2500", "3"), ("", "")]


def test_what_a_runner_refuses(start: Callable[..., Runner], tmp_path: Path) -> None:
    runner = start()
    runner.until(runner.serves)
    environment = {**os.environ, "PYTHONPATH": f"{OPERATOR}:{':'.join(sys.path)}", "HOME": str(tmp_path)}
    for flags, complaint in (
        (["--port", str(free_port()), "--state", str(runner.state)], f"by process {runner.process.pid}:"),
        (["--port", str(runner.port), "--state", str(tmp_path / "other")], "is taken"),
        (["--set", "server.apiKeySecret={name: keys}"], "put the keys into OARLOCK_API_KEY"),
    ):
        command = [runner.folder / "bin" / "python", "-m", "oarlock_operator.cli", "local", runner.file, *flags]
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and complaint in second.stderr
