"""How a download tells how far it is. Runs wherever a model is fetched; the command line draws it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["downloading", "retrying", "verifying", "unpacking", "waiting", "done"]
INTERVAL_S = 0.2  # between two reports
WINDOW_S = 5.0  # over which the rate is taken


@dataclass(frozen=True)
class Progress:
    """A moment of a download. Bytes count all files of the model; `total` is None while it isn't known.

    `note` explains a state that needs it: why it is being retried, what is being waited for.
    """

    state: State
    file: str
    done: int
    total: int | None
    rate: float  # bytes a second, over the last seconds
    note: str = ""


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Adds up the bytes of a model's files and reports them at most every fifth of a second, and on every new state."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._file = ""
        self._before = 0  # bytes of files that are done
        self._done = 0  # of the present file
        self._total: int | None = None
        self._reported = 0.0
        self._history: deque[tuple[float, int]] = deque()

    def expect(self, total: int | None) -> None:
        """How many bytes all files have together, if that is known."""
        self._total = total

    def expect_more(self, more: int) -> None:
        """How many bytes follow after the files that are complete."""
        self._total = self._before + more

    def begin(self, file: str, done: int) -> None:
        """The present file, of which `done` bytes are here already."""
        self._file, self._done = file, done
        self._history.clear()
        self._report("downloading")

    def at(self, done: int) -> None:
        """`done` bytes of the present file are here."""
        self._done = done
        if time.monotonic() - self._reported >= INTERVAL_S:
            self._report("downloading")

    def finish(self) -> None:
        """The present file is complete."""
        self._before += self._done
        self._done = 0

    def note(self, state: State, note: str = "", file: str | None = None) -> None:
        """Reports a change of state at once."""
        self._file = self._file if file is None else file
        self._report(state, note)

    def _report(self, state: State, note: str = "") -> None:
        if self._callback is None:
            return
        now, done = time.monotonic(), self._before + self._done
        self._reported = now
        self._history.append((now, done))
        while now - self._history[0][0] > WINDOW_S:
            self._history.popleft()
        elapsed = now - self._history[0][0]
        rate = (done - self._history[0][1]) / elapsed if elapsed > 0 else 0.0
        self._callback(Progress(state, self._file, done, self._total, max(rate, 0.0), note))
