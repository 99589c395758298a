"""`oarlock serve`: reads the settings and becomes the supervisor (server/supervisor.py), whose words it shows."""

import os
from typing import TYPE_CHECKING

from oarlock_runtime.cli.terminal import on_terminal
from oarlock_runtime.settings import Settings, help_text

if TYPE_CHECKING:
    from rich.progress import TaskID

HEAD = """usage: oarlock serve [MODEL] [flags]

Serves a model on http://HOST:PORT with OpenAI's API (/v1/chat/completions, /v1/completions, /v1/models) and
PaddleNLP's, and on HOST:GRPC_PORT with KServe's inference protocol.
MODEL is a path, hf://org/name, paddle://org/name/variant, https://…, or pypi://package/file.
A flag wins over its variables (env), of which the first that is set counts.

settings:
"""


class TerminalReporter:
    """The supervisor's words on a terminal: a bar while something is fetched or loaded, lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console
        )
        self._tasks: dict[str, TaskID] = {}

    def line(self, text: str) -> None:
        self._bars.console.print(text, markup=False, soft_wrap=True)

    def progress(self, what: str, share: float) -> None:
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=1.0)
        self._bars.update(self._tasks[what], completed=share)
        if share >= 1.0 and self._bars.finished:
            self._bars.stop()


def run(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HEAD + help_text())
        return 0
    settings = Settings.load(arguments, os.environ)
    from oarlock_runtime.server import supervisor

    return supervisor.main(settings, TerminalReporter() if on_terminal() else None)
