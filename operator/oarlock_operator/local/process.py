"""One container as a process group of this machine: its output in a file, its end guaranteed even if the runner dies.

It gets SIGTERM from the kernel when the runner is gone. What doesn't heed that is ended by the next runner, which finds
its pid beside the log.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Process:
    """A running process group."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "Process":
        """OSError when the program can't be started."""
        log.parent.mkdir(parents=True, exist_ok=True)
        runner = os.getpid()

        def die_with_the_runner() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != runner:  # it was gone before the kernel was asked
                os._exit(1)

        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_the_runner,
            )
        log.with_suffix(".pid").write_text(f"{process.pid} {_birth(process.pid)}")
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


def end_leftovers(folder: Path) -> list[int]:
    """Ends what an earlier runner that was killed has left behind; the pids of their main processes."""
    found = []
    for file in sorted(folder.glob("*/*.pid")):
        with contextlib.suppress(OSError, ValueError):
            pid, birth = map(int, file.read_text().split())
            if birth and _birth(pid) == birth:
                os.killpg(pid, signal.SIGKILL)
                found.append(pid)
    return found


def _birth(pid: int) -> int:
    """When a process was started, in ticks of the machine's clock: with the pid it names it for good. 0: it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def tail(log: Path, lines: int) -> str:
    """The end of a log; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 8192, 0))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
