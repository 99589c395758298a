"""PaddleNLP's log files, kept beside what the console shows. Runs in the supervisor, which sees every line.

`server.log` has everything, `workerlog.N` what rank N says, `http_server.log` what the servers say. A file is put aside
at midnight and dropped after some days.
"""

import logging
import re
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from typing import Protocol

from oarlock_runtime.errors import SettingError

_ALL = "server.log"
_RANK = re.compile(r"engine|rank-(\d+)")


class Reporter(Protocol):
    """Where the supervisor's words go."""

    def line(self, text: str) -> None: ...

    def progress(self, what: str, share: float) -> None: ...


class LogFiles:
    """A Reporter that writes files in `folder`, and passes all on to `console` if there is one."""

    def __init__(self, folder: Path, days: int, console: Reporter | None) -> None:
        """SettingError when the folder can't be written to."""
        self._folder = folder
        self._days = days
        self._console = console
        self._files: dict[str, logging.Handler] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (_ALL, "workerlog.0"):
                self._file(name)
        except OSError as error:
            raise SettingError(f"--log-dir={str(folder)!r} can't be written to: {error.strerror}") from None

    def line(self, text: str) -> None:
        self._write(_ALL, text)
        process, said, rest = text.partition(": ")
        rank = _RANK.fullmatch(process)
        if said and rank is not None:
            self._write(f"workerlog.{rank[1] or 0}", rest)
        elif said and process.partition("-")[0] == "server":
            self._write("http_server.log", rest)
        if self._console is not None:
            self._console.line(text)

    def progress(self, what: str, share: float) -> None:
        if share >= 1:
            self._write(_ALL, f"{what}: done")
        if self._console is not None:
            self._console.progress(what, share)

    def close(self) -> None:
        for handler in self._files.values():
            handler.close()

    def _write(self, name: str, text: str) -> None:
        self._file(name).handle(logging.LogRecord("oarlock", logging.INFO, "", 0, text, None, None))

    def _file(self, name: str) -> logging.Handler:
        handler = self._files.get(name)
        if handler is None:
            handler = TimedRotatingFileHandler(
                self._folder / name, when="midnight", backupCount=self._days, encoding="utf-8"
            )
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._files[name] = handler
        return handler
