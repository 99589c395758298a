"""Processes that outlive the command which started them: written down with their start time, ended by it.

A pid alone may belong to somebody else by the time it is used; pid and start time together don't.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Multiplies every time limit: for machines that are emulated, or have much else to do.
PATIENCE = float(os.environ.get("CLUSTER_PATIENCE") or 1)


class ClusterError(Exception):
    """The cluster can't be built or started; the text says what to do about it."""


class Processes:
    """The processes of one cluster; their list is kept in `folder`/pids, their output in `folder`/log."""

    def __init__(self, folder: Path) -> None:
        self.list = folder / "pids"
        self.logs = folder / "log"
        self.logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], path: Path | None = None) -> int:
        """Starts `command` in a session of its own; returns its pid. `path` is put before PATH."""
        environment = dict(os.environ)
        if path is not None:
            environment["PATH"] = f"{path}:{environment.get('PATH', '')}"
        with (self.logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        with self.list.open("a") as file:
            file.write(f"{child.pid} {start_time(child.pid)} {name}\n")
        child.returncode = 0  # it outlives us; nothing here waits for it
        return child.pid

    def running(self) -> list[tuple[int, str]]:
        """(pid, name) of those that still run, in the order of their start."""
        if not self.list.exists():
            return []
        found = []
        for line in self.list.read_text().splitlines():
            pid, started, name = line.split(" ", 2)
            if start_time(int(pid)) == started != "":
                found.append((int(pid), name))
        return found

    def pid(self, name: str) -> int:
        """The pid of the running process called `name`."""
        for pid, other in reversed(self.running()):
            if other == name:
                return pid
        raise ClusterError(f"{name} is not running; see {self.logs / name}.log")

    def stop(self, names: Sequence[str] | None = None, grace: float = 5.0) -> None:
        """Ends the named processes (default: all), the last started first; kills those that stay after `grace` s."""
        wanted = [(pid, name) for pid, name in self.running() if names is None or name in names]
        for pid, _ in reversed(wanted):
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and self._left(wanted):
            time.sleep(0.05)
        for pid, _ in self._left(wanted):
            _signal(pid, signal.SIGKILL)
        if names is None:
            self.list.unlink(missing_ok=True)

    def _left(self, wanted: list[tuple[int, str]]) -> list[tuple[int, str]]:
        _reap()
        return [entry for entry in wanted if entry in self.running()]

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a process's log, for error messages."""
        file = self.logs / f"{name}.log"
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else "(no log)"


def start_time(pid: int) -> str:
    """When the process started, in the kernel's clock ticks; "" when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def wait_for(what: str, check: Callable[[], bool], seconds: float, detail: Callable[[], str] | None = None) -> None:
    """Waits until `check` holds. Raises ClusterError naming `what` after `seconds`, times PATIENCE."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} not within {seconds:g} s" + (f":\n{detail()}" if detail else ""))
        time.sleep(0.1)


def run(*command: str | Path, seconds: float = 60, given: str | None = None, check: bool = True) -> str:
    """Runs a command to its end and returns its output. Raises ClusterError with what it said when it fails.

    It is ended after `seconds`, times PATIENCE."""
    seconds *= PATIENCE
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=seconds, input=given
        )
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(map(str, command))}: not done after {seconds:g} s") from None
    if check and done.returncode:
        raise ClusterError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap() -> None:
    """Takes the exit status of children that have ended, so that they don't look alive."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
