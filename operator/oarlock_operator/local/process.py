"""One container as a process group of this machine: output in a file, its end guaranteed even if the runner dies."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Runs in the child: SIGTERM when the runner is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A running process group."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "Process":
        """OSError when the program can't be started."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code; nothing of the group is left then."""
        code = await self._process.wait()
        self.kill()
        return code

    def terminate(self) -> None:
        """Asks the main process to end; it ends its own."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the whole group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def tail(self, lines: int = 3) -> str:
        """The last lines it wrote."""
        return tail(self.log, lines)


def tail(log: Path, lines: int) -> str:
    """The end of a log; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 8192, 0))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
