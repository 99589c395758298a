"""Finds stop strings in text that arrives in pieces. Runs in the server processes."""

from collections.abc import Sequence

MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters


class StopMatcher:
    """Withholds text for as long as it may still turn into a stop string; nothing of a stop string is ever let out."""

    __slots__ = ("_firsts", "_held", "_longest", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops))
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain now. Once `stopped` is set, it ends right before the first stop string."""
        text = self._held + piece
        found = [position for position in map(text.find, self._stops) if position >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts and any(stop.startswith(text[start:]) for stop in self._stops):
                self._held = text[start:]
                return text[:start]
        self._held = ""
        return text

    def flush(self) -> str:
        """The withheld text, which is certain once no more will come (or while stop strings don't count yet)."""
        held, self._held = self._held, ""
        return held
