"""What the commands print: progress that redraws itself on a terminal and is a line now and then in a pipe; tables.

Results go to stdout, progress and remarks to stderr, so that a result can be piped on.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

PIPE_LINE_SECONDS = 5.0  # between two lines of progress in a pipe


class Progress(Protocol):
    """Something with a known or unknown total that advances; `total` and `done` in the unit of its bar."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None: ...


def on_terminal() -> bool:
    return sys.stderr.isatty()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class PipeProgress:
    """Progress in a pipe: one plain line at most every few seconds."""

    def __init__(self, title: str, in_bytes: bool) -> None:
        self._title = title
        self._in_bytes = in_bytes
        self._next = time.monotonic() + PIPE_LINE_SECONDS

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PIPE_LINE_SECONDS
        count = human_bytes(done) if self._in_bytes else f"{done:g}"
        of = (f" of {human_bytes(total) if self._in_bytes else f'{total:g}'} ({done / total:.0%})") if total else ""
        say(f"{self._title}: {count}{of}{'  ' + note if note else ''}")


@contextmanager
def progress(title: str, in_bytes: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr; in bytes it shows the rate and the time left as well."""
    if not on_terminal():
        yield PipeProgress(title, in_bytes)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    counts: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    ends = [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, *ends]
    # What counts no bytes may be a measurement, beside which nothing should run: it is drawn when it moves.
    with Bars(*columns, console=Console(stderr=True), auto_refresh=in_bytes) as bars:
        task = bars.add_task(title, total=None, note="")

        class TerminalProgress:
            def update(self, done: float, total: float | None = None, note: str = "") -> None:
                bars.update(task, completed=done, total=total, note=note, refresh=not in_bytes)

        yield TerminalProgress()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on stdout: drawn on a terminal, columns padded with spaces in a pipe. The first column is text."""
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        drawn = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
        for row in rows:
            drawn.add_row(*row)
        Console().print(drawn)
        return
    widths = [max(len(line[index]) for line in [columns, *rows]) for index in range(len(columns))]
    print(title)
    for line in [columns, *rows]:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *padded[1:]]).rstrip())
