"""A process of the server as the supervisor sees it: started, listened to, reaped. Runs in the supervisor."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from oarlock_runtime.server.control import Control

TAIL_LINES = 20
_LONGEST_LINE = 1 << 16


class Child:
    """A process. `on_message` gets what it tells, `on_line` what it prints; `exit_status` is None while it runs."""

    def __init__(
        self,
        name: str,
        module: str,
        first: dict[str, Any],
        *,
        on_message: Callable[["Child", dict[str, Any]], None],
        on_line: Callable[["Child", str], None],
        environ: dict[str, str],
        inherited: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.ready = False
        self.facts: dict[str, Any] = {}
        self.stats: dict[str, Any] = {}
        self.last_beat = 0.0
        self.error = ""  # its own words about why it ends
        self.exit_status: int | None = None
        self.ended = asyncio.Event()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_message = on_message
        self._on_line = on_line
        self._partial = b""
        self.control, theirs = Control.pair()
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._output = read
        self._loop = asyncio.get_running_loop()
        try:
            # A session of its own: a Ctrl-C in the terminal is for the supervisor alone.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=environ,
                pass_fds=(theirs.fileno(), *inherited),
                start_new_session=True,
            )
        finally:
            os.close(write)
            theirs.close()
        self.pid = self._process.pid
        self.control.send("settings", **first)
        self._loop.add_reader(read, self._read_output)
        self._loop.add_reader(self.control.socket, self._read_messages)

    def _read_messages(self) -> bool:
        """Takes one message; False when there is none."""
        try:
            message = self.control.receive()
        except BlockingIOError:
            return False
        if message is None:
            self._loop.remove_reader(self.control.socket)
            return False
        match message["kind"]:
            case "error":
                self.error = message["message"]
            case "beat":
                self.last_beat = time.monotonic()
                self.stats = message.get("stats", {})
            case "ready":
                self.ready = True
                self.last_beat = time.monotonic()
                self.facts = message
        self._on_message(self, message)
        return True

    def _read_output(self) -> bool:
        """Takes what it printed; False when there is nothing."""
        try:
            data = os.read(self._output, _LONGEST_LINE)
        except BlockingIOError:
            return False
        *lines, rest = (self._partial + data).split(b"\n")
        if rest and (not data or len(rest) > _LONGEST_LINE):
            lines, rest = [*lines, rest], b""
        self._partial = rest
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            self.tail.append(text)
            self._on_line(self, text)
        if not data:
            self._loop.remove_reader(self._output)
        return bool(data)

    def reaped(self, status: int) -> None:
        """The kernel says that it has ended."""
        # What it said last may still lie in the sockets.
        while self._read_messages():
            pass
        while self._read_output():
            pass
        self._loop.remove_reader(self.control.socket)
        self._loop.remove_reader(self._output)
        self._process.returncode = self.exit_status = os.waitstatus_to_exitcode(status)
        os.close(self._output)
        self.control.close()
        self.ended.set()

    def kill(self) -> None:
        """At once, with whatever it may have started."""
        if self.exit_status is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def reason(self) -> str:
        """Why it ended, in a sentence."""
        if self.error:
            return f"{self.name} failed: {self.error}"
        status = self.exit_status
        if status is not None and status < 0:
            hint = "; perhaps the machine ran out of memory" if status == -signal.SIGKILL else ""
            return f"{self.name} was killed by signal {-status} ({signal.Signals(-status).name}){hint}"
        return f"{self.name} ended with exit code {status}"
