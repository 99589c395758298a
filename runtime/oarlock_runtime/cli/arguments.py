"""argparse with our manners: a wrong command line is one line that names the flag, and the nearest flag is offered."""

import argparse
import difflib
from collections.abc import Callable
from typing import NoReturn

from oarlock_runtime.cli.dispatch import UsageError

MODEL_HELP = "a path, hf://…, paddle://…, https://… or pypi://…"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, takes no abbreviations and shows defaults in its help."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"oarlock {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """The parsed flags; UsageError with the nearest flag for one that is unknown."""
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            raise UsageError(f"{self.prog} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return values


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number in [low, high]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return value

    return parse


def number(low: float, high: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number in [low, high]."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return parse


def integers(low: int, high: int = 2**31 - 1) -> Callable[[str], list[int]]:
    """An argparse type: whole numbers in [low, high], separated by commas."""
    one = integer(low, high)
    return lambda text: [one(part) for part in text.split(",")]
