"""A whole server as a user starts it: supervisor, engine and server processes, over a real model on disk."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_SECONDS = 60
_PROGRAM = (
    "import os, sys; from oarlock_runtime.server.supervisor import main; from oarlock_runtime.settings import Settings;"
    "sys.exit(main(Settings.load(sys.argv[1:], os.environ)))"
)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


class Served:
    """A running server. `output` grows while it runs; `wait` gives its exit code."""

    def __init__(self, model: Path, cache: Path, *flags: str) -> None:
        api, health, metrics, grpc = free_ports(4)
        self.url, self.api_port, self.grpc_address = f"http://127.0.0.1:{api}", api, f"127.0.0.1:{grpc}"
        self._health, self._metrics = f"http://127.0.0.1:{health}", f"http://127.0.0.1:{metrics}"
        ports = ["--port", str(api), "--health-port", str(health), "--metrics-port", str(metrics)]
        ports += ["--grpc-port", str(grpc)]
        small = ["--kv-memory", "16MiB", "--threads", "1", "--cache-dir", str(cache)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OARLOCK_")}
        # The package that this process has: on a GPU machine it is a build beside the sources.
        environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [environ.get("PYTHONPATH"), str(Path(__file__).parents[2])])
        )
        # What a killed supervisor can't clean up goes with it; a short path, since it ends up in a socket's name.
        self._scratch = tempfile.TemporaryDirectory(prefix="served-")
        environ["TMPDIR"] = self._scratch.name
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(model), *ports, *small, *flags],
            stderr=subprocess.PIPE,
            env=environ,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def children(self) -> dict[str, int]:
        """Process ids by module name; server processes after the first get a number."""
        found: dict[str, int] = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if len(words) < 4:  # it is forked, but not yet what it will be
                continue
            name = words[3].rpartition(".")[2]
            found[name if name not in found else f"{name}-{len(found)}"] = int(pid)
        return found

    def health(self, which: str) -> int:
        """0 for 200, otherwise PaddleNLP's error code; -1 when nobody answers."""
        try:
            response = httpx.get(f"{self._health}/v2/health/{which}", timeout=5)
        except httpx.TransportError:
            return -1
        return 0 if response.status_code == 200 else int(response.json()["error_code"])

    def page(self) -> str:
        return httpx.get(self._metrics + "/metrics", timeout=5).text

    def metric(self, name: str) -> float:
        """The value of a sample, written with its labels."""
        match = re.search(rf"^{re.escape(name)} (\S+)$", self.page(), re.MULTILINE)
        return float(match[1]) if match else 0.0

    def wait_ready(self) -> None:
        until(lambda: self.process.poll() is not None or "Oarlock is ready" in self.output, START_SECONDS)
        assert self.process.poll() is None, self.output

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._scratch.cleanup()
        return code


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def served(model: Path, cache: Path, *flags: str) -> Iterator[Served]:
    """A ready server; whatever is left of it is killed."""
    server = Served(model, cache, *flags)
    try:
        server.wait_ready()
        yield server
    finally:
        server.process.kill()
        server.wait()
