"""The servers that start_server has started and stop_server is to stop: a file each, named by pid. Runs in both.

A pid may have been given to another process since; the time at which it was started tells.
"""

import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime.errors import OarlockError


def folder() -> Path:
    """Where this user's files lie: in the directory for temporary files. OarlockError when it is another's."""
    path = Path(tempfile.gettempdir()) / f"oarlock-started-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise OarlockError(f"{path} belongs to another user; remove it, or set TMPDIR")
    return path


@dataclass(frozen=True)
class Started:
    """A server; `began` is when its process was started, in the kernel's ticks."""

    pid: int
    began: int

    @classmethod
    def record(cls, pid: int) -> "Started":
        """Keeps in mind that `pid` is a server. It has just been started and can't have ended unnoticed."""
        started = cls(pid, _began(pid) or 0)
        (folder() / str(pid)).write_text(str(started.began), encoding="ascii")
        return started

    @property
    def running(self) -> bool:
        return _began(self.pid) == self.began

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.running:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def forget(self) -> None:
        (folder() / str(self.pid)).unlink(missing_ok=True)


def running() -> list[Started]:
    """The servers that run; what is left of others is removed."""
    found = []
    for file in folder().glob("[0-9]*"):
        try:
            started = Started(int(file.name), int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
        if started.running:
            found.append(started)
        else:
            started.forget()
    return found


def _began(pid: int) -> int | None:
    """When a process was started; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
