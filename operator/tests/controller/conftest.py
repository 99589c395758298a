"""One real API server for all tests of the controller, a namespace for each; the operator runs as a process."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_support.apiserver import Server, start

from cluster.versions import missing

LACKING = missing(("etcd", "kube-apiserver")) or ([] if shutil.which("openssl") else ["openssl"])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if LACKING:
        pytest.skip(f"no {', '.join(LACKING)}: run make cluster-build to test against a real API server")
    found = start(tmp_path_factory.mktemp("apiserver"))
    yield found
    found.plane.stop()


@pytest.fixture
def namespace(server: Server) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    server.namespace(name)
    return name


def spawn(server: Server, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """An `oarlock-operator` command as a process, its output in `log`."""
    environment = {**os.environ, "KUBECONFIG": str(server.plane.kubeconfig)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with log.open("ab") as file:
        command = [sys.executable, "-m", "oarlock_operator.cli", *words]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


class Operator:
    """An operator process that looks after one namespace."""

    def __init__(self, server: Server, namespace: str, log: Path, *flags: str) -> None:
        self._log = log
        place = ("--namespace", namespace, "--lease-namespace", namespace)
        self.process = spawn(server, log, "run", *place, "--port", "0", *flags)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(15)


class Operators:
    """Starts operators and sees to it that none stays."""

    def __init__(self, server: Server, namespace: str, folder: Path) -> None:
        self._server, self._namespace, self._folder = server, namespace, folder
        self.all: list[Operator] = []

    def start(self, *flags: str) -> Operator:
        found = Operator(self._server, self._namespace, self._folder / f"operator-{len(self.all)}.log", *flags)
        self.all.append(found)
        return found

    def release(self) -> int:
        """What the chart runs before an uninstall; its exit code."""
        place = ("--namespace", self._namespace, "--lease-namespace", self._namespace)
        return spawn(self._server, self._folder / "release.log", "release", *place).wait(30)

    def stop(self) -> None:
        for operator in self.all:
            if operator.process.poll() is None:
                operator.kill()


@pytest.fixture
def operators(server: Server, namespace: str, tmp_path: Path) -> Iterator[Operators]:
    found = Operators(server, namespace, tmp_path)
    yield found
    found.stop()
    for operator in found.all:
        print(operator.log)
