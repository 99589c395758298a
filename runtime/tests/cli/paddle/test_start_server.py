"""start_server and stop_server as processes, over a tiny model."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.file_server import serve_files
from support.served import alive, free_ports, until
from support.tiny import tiny_directory
from support.triton import client_of, stream_of

from oarlock_runtime import _C
from oarlock_runtime.cli.paddle import start_server
from oarlock_runtime.models.errors import SourceError

PORTS = ("SERVICE_HTTP_PORT", "SERVICE_GRPC_PORT", "HEALTH_HTTP_PORT", "METRICS_HTTP_PORT", "INTER_PROC_PORT")
NAME = "Qwen/Qwen2-1.5B-Instruct-Block-Attn/float16"
START_SECONDS = 60.0


class Shell:
    """A working directory and an environment in which the commands run; what they start is killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.environ = {
            **inherited,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "TMPDIR": str(folder / "tmp"),
            "OARLOCK_HOST": "127.0.0.1",
            "OARLOCK_THREADS": "1",
            "OARLOCK_CACHE_DIR": str(folder / "cache"),
            "PUSH_MODE_HTTP_WORKERS": "1",
            "MAX_SEQ_LEN": "256",
            "MAX_DEC_LEN": "256",
            **{name: str(port) for name, port in self.ports.items()},
        }
        (folder / "tmp").mkdir()

    def run(self, command: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"oarlock_runtime.cli.paddle.{command}", *words],
            cwd=self.folder,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )

    def mpirun(self, command: str, hosts: list[dict[str, str]]) -> subprocess.CompletedProcess[str]:
        """The command once for each host's environment, by one mpirun."""
        words = ["mpirun", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
        for number, own in enumerate(hosts):
            own_words = [f"{name}={text}" for name, text in own.items()]
            words += [":"] * (number > 0) + ["-np", "1", "env", *own_words]
            words += [sys.executable, "-m", f"oarlock_runtime.cli.paddle.{command}"]
        return subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=START_SECONDS
        )

    def started(self) -> list[int]:
        """The pids on record."""
        return [int(file.name) for file in (self.folder / "tmp").glob("**/oarlock-started-*/*")]

    def log(self) -> str:
        file = self.folder / "log" / "server.log"
        return file.read_text() if file.exists() else ""

    def wait_ready(self) -> None:
        until(lambda: "Oarlock is ready" in self.log() or not any(map(alive, self.started())), START_SECONDS)
        assert "Oarlock is ready" in self.log(), self.log() + (self.folder / "log" / "console.log").read_text()

    def ask(self, **fields: Any) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.ports['SERVICE_HTTP_PORT']}/v1/chat/completions"
        answer: dict[str, Any] = httpx.post(url, json=fields, timeout=20).json()
        return answer

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['SERVICE_GRPC_PORT']}"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path)
    yield opened
    for pid in opened.started():
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("model"), "llama")


@pytest.mark.conformance(1, 4, 8, 28)
def test_it_starts_in_the_background_answers_and_drains(shell: Shell, model: Path) -> None:
    foreign = Path("/dev/shm") / f"oarlock-test-{os.getpid()}"
    foreign.write_bytes(b"another's")
    try:
        done = shell.run("start_server", MODEL_DIR=str(model))
        assert (done.returncode, done.stderr) == (0, "") and "Master node, start serving ..." in done.stdout
        (pid,) = shell.started()
        shell.wait_ready()
        assert {file.name for file in (shell.folder / "log").iterdir()} >= {"server.log", "workerlog.0", "console.log"}
        assert shell.ask(text="hi", max_dec_len=3, topp=0)["error_code"] == 0
        # A request that runs when the server is told to stop comes to its end.
        with client_of(shell.grpc) as client, stream_of(client) as stream:
            stream.send({"text": "hi", "req_id": "last", "max_dec_len": 150, "min_dec_len": 150})
            stream.next()
            stopped: list[subprocess.CompletedProcess[str]] = []
            thread = threading.Thread(target=lambda: stopped.append(shell.run("stop_server")))
            thread.start()
            assert stream.frames()[-1]["tokens_all_num"] == 151
            thread.join(START_SECONDS)
        assert stopped[0].returncode == 0 and stopped[0].stdout.splitlines()[-1] == "all process terminated."
        assert not alive(pid) and not shell.started()
        assert shell.log().rstrip().endswith("stopped")
        assert foreign.read_bytes() == b"another's"
    finally:
        foreign.unlink()


@pytest.mark.conformance(1)
def test_what_does_not_drain_in_time_is_killed(shell: Shell, model: Path) -> None:
    assert shell.run("start_server", MODEL_DIR=str(model)).returncode == 0
    (pid,) = shell.started()
    shell.wait_ready()
    os.kill(pid, signal.SIGSTOP)
    done = shell.run("stop_server", "0.2")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "all process terminated."
    assert f"killing process {pid}" in done.stdout and not alive(pid)
    nothing = shell.run("stop_server")
    assert (nothing.returncode, nothing.stdout) == (0, "all process terminated.\n")


@pytest.mark.conformance(2)
@pytest.mark.parametrize("name", PORTS)
def test_a_busy_port_is_named_and_nothing_started(shell: Shell, model: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", shell.ports[name])):
        done = shell.run("start_server", MODEL_DIR=str(model))
    assert done.returncode == 1
    assert done.stdout == f"PORT: {shell.ports[name]} occupied! Please change the port!\n"
    assert not shell.started() and not (shell.folder / "log").exists()


@pytest.mark.parametrize("launcher", ["by hand", *(["mpirun"] if shutil.which("mpirun") else [])])
def test_two_hosts_serve_one_model(shell: Shell, model: Path, launcher: str) -> None:
    # Two loopback addresses stand for the hosts, and two directories for what each has of its own.
    addresses = ("127.0.0.1", "127.0.0.2")
    shell.environ |= {"MP_NNODE": "2", "MP_NUM": "2", "POD_IPS": ",".join(addresses), "POD_0_IP": addresses[0]}
    hosts = []
    for address in addresses:
        own = {"TMPDIR": f"{shell.folder}/tmp/{address}", "FD_LOG_DIR": f"{shell.folder}/{address}"}
        os.mkdir(own["TMPDIR"])
        hosts.append({**own, "HOST_IP": address, "OARLOCK_HOST": address, "MODEL_DIR": str(model)})

    def everywhere(command: str) -> str:
        if launcher == "mpirun":
            done = [shell.mpirun(command, hosts)]
        else:  # any order does to start; the second host doesn't leave before the first has answered its clients
            order = hosts if command == "stop_server" else reversed(hosts)
            done = [shell.run(command, **host) for host in order]
        assert [one.returncode for one in done] == [0] * len(done), [one.stdout + one.stderr for one in done]
        return "".join(one.stdout for one in done)

    said = everywhere("start_server")
    assert "Master node, start serving ..." in said and "Slave node, start push mode" in said
    logs = [shell.folder / address / "server.log" for address in addresses]
    until(lambda: all(log.exists() and "Oarlock is ready" in log.read_text() for log in logs), START_SECONDS)
    assert shell.ask(text="hi", max_dec_len=3, topp=0)["error_code"] == 0
    everywhere("stop_server")
    assert not shell.started()
    assert all("stopped" in log.read_text().splitlines()[-1] for log in logs)


@pytest.mark.conformance(5)
@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MP_NUM": "3", "MP_NNODE": "2"}, "MP_NUM=3 must be a multiple of MP_NNODE=2"),
        ({"BATCH_SIZE": "257"}, "BATCH_SIZE=257 is out of range"),
        ({"DEVICE": "npu"}, "DEVICE='npu' is unknown"),
        ({"MODEL_DIR": "/nowhere"}, "/nowhere: no such file or directory"),
        ({"OARLOCK_PADDLE_DEFAULTS": "mine"}, "give one of script, documented"),
        ({"FD_LOG_DIR": "/proc/none/log"}, "FD_LOG_DIR=/proc/none/log can't be made"),
        ({"INTER_PROC_PORT": "x"}, "INTER_PROC_PORT='x' is not an integer"),
        ({"MP_NNODE": "2", "MP_NUM": "2", "POD_IPS": "10.0.0.1"}, "POD_IPS='10.0.0.1' lists 1 hosts"),
        ({"MP_NNODE": "2", "MP_NUM": "2", "POD_IPS": "10.0.0.1,10.0.0.2"}, "POD_0_IP is not set"),
    ],
)
def test_it_does_not_start_with_settings_that_can_not_work(
    shell: Shell, model: Path, environ: dict[str, str], words: str
) -> None:
    done = shell.run("start_server", **{"MODEL_DIR": str(model), **environ})
    assert done.returncode == 1 and words in done.stdout and len(done.stdout.splitlines()) == 1
    assert not shell.started()


def test_wrong_words_get_the_usage(shell: Shell) -> None:
    for command, words in (("start_server", ("a", "b")), ("start_server", ("--model",)), ("stop_server", ("soon",))):
        done = shell.run(command, *words)
        assert done.returncode == 2 and f"usage: {command}" in done.stderr
        assert shell.run(command, "--help").stdout.startswith(f"usage: {command}")


@pytest.mark.conformance(1, 29)
def test_a_name_of_the_catalogue_is_fetched_and_served(shell: Shell, model: Path) -> None:
    import hashlib

    files = {file.name: file.read_bytes() for file in model.iterdir()}
    with serve_files() as server:
        where = f"/3.0.0.b4/{NAME}/model"
        lines = [f"{name}:{hashlib.md5(content).hexdigest()}\n" for name, content in files.items()]
        server.files[f"{where}/file_list.txt"] = "".join(lines).encode()
        server.files |= {f"{where}/{name}": content for name, content in files.items()}
        models = shell.folder / "models"
        done = shell.run("start_server", NAME, MODEL_DIR=str(models), PADDLE_MODELS_URL=server.url)
        assert done.returncode == 0, done.stdout
        shell.wait_ready()
    assert {file.name for file in (models / NAME).iterdir()} >= set(files)
    port = shell.ports["SERVICE_HTTP_PORT"]
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"] == NAME
    assert shell.run("stop_server").returncode == 0


def test_a_directory_that_is_there_is_served_and_an_unknown_name_is_not(tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(tmp_path)}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text(json.dumps({}))
    assert start_server.model_of(environ, "mine") == {
        "MODEL_DIR": str(mine),
        "OARLOCK_SERVED_MODEL_NAME": "mine",
    }
    assert start_server.model_of(environ, NAME)["MODEL_DIR"] == f"paddle://{NAME}"
    assert start_server.model_of(environ, "hf://a/b") == {"MODEL_DIR": "hf://a/b"}
    assert start_server.model_of(environ, "") == {}
    with pytest.raises(SourceError, match="is no model"):
        start_server.model_of(environ, "other")


def test_a_device_that_the_build_lacks_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_C, "devices", lambda: ["cpu"])
    monkeypatch.setenv("MODEL_DIR", str(model))
    monkeypatch.setenv("DEVICE", "GPU")
    assert start_server.main([]) == 1
    assert "this build has no cuda; it runs models on cpu" in capsys.readouterr().out


def test_as_a_containers_first_process_it_becomes_the_server(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ReplacedError(Exception):
        pass

    def execve(program: str, words: list[str], environ: dict[str, str]) -> None:
        assert program == words[0] == sys.executable and words[-1] == "serve"
        assert environ["MODEL_DIR"] == str(model) and environ["OUTPUT_LOG_TO_CONSOLE"] == "1"
        raise ReplacedError

    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        monkeypatch.setenv(name, str(port))
    monkeypatch.setenv("MODEL_DIR", str(model))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(ReplacedError):
        start_server.main([])
    assert "Master node" in capsys.readouterr().out


def test_a_small_shm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_server, "SHM_BYTES", 1 << 60)
    told = start_server.shm_warning()
    assert told is not None and "/dev/shm has" in told and "--shm-size" in told
    monkeypatch.setattr(start_server, "SHM_BYTES", 0)
    assert start_server.shm_warning() is None


def test_each_host_of_a_group_knows_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = start_server.addresses_of({"MP_NNODE": "1", "POD_0_IP": "10.0.0.1"})
    assert alone == {"POD_0_IP": "127.0.0.1", "HOST_IP": "127.0.0.1"}
    assert start_server.addresses_of({"MP_NNODE": "2", "HOST_IP": "10.0.0.2"}) == {"HOST_IP": "10.0.0.2"}
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.3")
    assert start_server.addresses_of({"MP_NNODE": "2"}) == {"HOST_IP": "10.0.0.3"}
