"""Typed access to a model's configuration, whose errors name file, field, value and what would be right.

Used wherever a config.json or a GGUF header is read (server, engine and command line).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from oarlock_runtime.models.errors import CheckpointError

T = TypeVar("T")


class Fields:
    """A configuration mapping together with the file it was read from. A value of None counts as absent."""

    def __init__(self, file: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.file = file
        self.values = values
        self.prefix = prefix

    def error(self, name: str, problem: str) -> CheckpointError:
        """The error to raise about field `name`."""
        return CheckpointError(f"{self.file}: {self.prefix}{name}: {problem}")

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31) -> int:
        """An integer in [low, high]; `default` when absent, an error when absent without one."""
        value = self.values.get(name)
        if value is None:
            return self._default(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"{_shown(value)} is not an integer")
        if not low <= value <= high:
            raise self.error(name, f"{value} is not between {low} and {high}")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite number greater than `above`."""
        value = self.values.get(name)
        if value is None:
            return self._default(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"{_shown(value)} is not a number")
        if not above < value < float("inf"):
            raise self.error(name, f"{value} is not a finite number above {above:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"{_shown(value)} is not true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name)
        if value is None:
            return self._default(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"{_shown(value)} is not a string")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids given as one integer or a list of them; empty when absent."""
        value = self.values.get(name)
        if value is None:
            return ()
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int) or item < 0:
                raise self.error(name, f"{_shown(value)} is not a token id or a list of them")
        return tuple(items)

    def section(self, name: str) -> "Fields | None":
        """A nested mapping, or None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"{_shown(value)} is not an object")
        return Fields(self.file, value, f"{self.prefix}{name}.")

    def _default(self, name: str, default: T | None) -> T:
        if default is None:
            raise self.error(name, "missing")
        return default


def read_json(file: Path) -> Fields:
    """A JSON object from `file`."""
    if file.is_fifo():  # opening it would wait for ever
        raise CheckpointError(f"{file}: is a pipe, not a file")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not a JSON object")
    return Fields(file, values)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
