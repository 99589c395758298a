"""How one setting is described, and how its values are read and shown. Pure; used by settings.py alone."""

import math
import re
from dataclasses import dataclass
from typing import Any

from oarlock_runtime.errors import SettingError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_KINDS = {int: "integer", float: "number"}


@dataclass(frozen=True, slots=True)
class Description:
    """What the names, help page and error messages of one setting are made from."""

    help: str
    env: tuple[str, ...] = ()  # PaddleNLP's names, first wins
    unit: str = ""  # "bytes" values may be written 512MiB, 2GB, 1.5g
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, str], ...] = ()  # other spellings of a choice or of a number
    zero: str = ""  # a word that may be written for 0, and is shown instead of it
    secret: bool = False


def show_value(description: Description, value: Any) -> str:
    """A value as the user would write it."""
    if description.secret:
        return "********" if value else "none"
    if value == 0 and description.zero:
        return description.zero
    if isinstance(value, bool):
        return "on" if value else "off"
    if description.unit == "bytes":
        for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value >= 1 << power:
                return f"{value / (1 << power):.4g} {unit}"
    if isinstance(value, float):
        value = f"{value:g}"
    return f"{value or '(none)'} {description.unit}".rstrip()


def show_range(description: Description) -> str:
    """From where to where its numbers go."""
    return f"from {_bound(description, description.low)} to {_bound(description, description.high)}"


def _bound(description: Description, bound: float | None) -> str:
    if bound is None:
        return "any"
    return show_value(description, bound) if description.unit == "bytes" and bound else f"{bound:.12g}"


def parse_value(description: Description, kind: type[Any], text: str, source: str) -> Any:
    """The value of type `kind` written as `text`; `source` (a flag or variable) is named in a SettingError."""
    text = text.strip()
    if kind is str:
        if not description.choices:
            return text
        choice = dict(description.synonyms).get(text.lower(), text.lower())
        if choice not in description.choices:
            raise SettingError(f"{source}={text!r} is unknown: give one of {', '.join(description.choices)}")
        return choice
    if kind is bool:
        if text.lower() not in _YES + _NO:
            raise SettingError(f"{source}={text!r} is neither on nor off: give one of {', '.join(_YES + _NO)}")
        return text.lower() in _YES
    text = dict(description.synonyms).get(text.lower(), text)
    named = bool(description.zero) and text.lower() in ("auto", description.zero)
    number = 0.0 if named else _number(text, description)
    expected = "a size such as 512MiB" if description.unit == "bytes" else f"a{'n' * (kind is int)} {_KINDS[kind]}"
    if number is None or not math.isfinite(number) or (kind is int and number != int(number)):
        raise SettingError(f"{source}={text!r} is not {expected}")
    low, high = (None, None) if named else (description.low, description.high)
    if (low is not None and number < low) or (high is not None and number > high):
        raise SettingError(f"{source}={text!r} is out of range: give {expected} {show_range(description)}")
    return kind(number)


def _number(text: str, description: Description) -> float | None:
    if description.unit == "bytes":
        match = _SIZE.fullmatch(text)
        if not match:
            return None
        thousand = 1000 if match[2] and not match[3] and text.lower().endswith("b") else 1024
        power = " kmgt".index(match[2].lower() or " ")
        return float(math.floor(float(match[1]) * float(thousand) ** power))
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
