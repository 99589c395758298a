"""Where the supervisor's words go: the terminal or a pipe, files, or both. Runs in the supervisor."""

import contextlib
import sys
from pathlib import Path
from typing import TextIO

from oarlock_runtime.server.log_files import LogFiles, Reporter
from oarlock_runtime.settings import Settings


class PlainReporter:
    """Lines on `stream`, fit for a pipe: progress at every tenth."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: tuple[str, int] = ("", -1)

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def progress(self, what: str, share: float) -> None:
        tenth = (what, int(share * 10))
        if tenth != self._last:
            self._last = tenth
            self.line(f"{what} {share:.0%}")


def reporter_of(settings: Settings, given: Reporter | None, stack: contextlib.ExitStack) -> Reporter:
    """`given`, or lines on stderr; with log_dir files, and standard output where that is wanted too."""
    if not settings.log_dir:
        return given or PlainReporter(sys.stderr)
    console = (given or PlainReporter(sys.stdout)) if settings.log_to_console else None
    files = LogFiles(Path(settings.log_dir).expanduser(), settings.log_backups, console)
    stack.callback(files.close)
    return files
