"""What a bench asks: prompts of exact token lengths, outputs of fixed lengths, drawn from a seed.

Every repeat draws new prompts, because a server would answer old ones from its prefix cache; two servers under
comparison are given the same ones.
"""

import argparse
import math
import random
from dataclasses import dataclass
from typing import Protocol

from oarlock_runtime.cli.dispatch import UsageError

LONGEST_SPREAD = 4  # a lognormal length is at most so many times the mean


class Words(Protocol):
    """The part of a tokenizer that text prompts need (see models/tokenizer.py)."""

    def encode(self, text: str, add_special: bool) -> list[int]: ...
    def decode(self, ids: list[int], skip_special: bool) -> str: ...


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens. spread 0 = every length as given; above 0 = lognormal of that sigma with the given means."""

    input: int = 256
    output: int = 128
    spread: float = 0.0
    prefix: int = 0  # tokens that all prompts share, in front of `input` own ones
    first_id: int = 1000  # token ids are drawn from [first_id, last_id]
    last_id: int = 30000

    def describe(self) -> str:
        shape = f"{self.input} in, {self.output} out"
        shape += f", lognormal of sigma {self.spread:g}" if self.spread else ""
        return shape + (f", after a shared prefix of {self.prefix}" if self.prefix else "")


def workload_of(flags: argparse.Namespace) -> Workload:
    if flags.last_id < flags.first_id:
        raise UsageError(f"--last-id {flags.last_id} is below --first-id {flags.first_id}")
    return Workload(flags.input, flags.output, flags.spread, flags.prefix, flags.first_id, flags.last_id)


@dataclass(frozen=True)
class Ask:
    """One request: the prompt as token ids, and how many tokens are to come back."""

    prompt: list[int]
    output: int


def draw(workload: Workload, count: int, seed: str) -> list[Ask]:
    """`count` requests; the same seed gives the same ones. The shared prefix depends on the seed alone."""
    dice = random.Random(seed)
    ids = range(workload.first_id, workload.last_id + 1)
    prefix = dice.choices(ids, k=workload.prefix)
    asks = []
    for _ in range(count):
        own = dice.choices(ids, k=length(workload.input, workload.spread, dice))
        asks.append(Ask(prefix + own, length(workload.output, workload.spread, dice)))
    return asks


def length(mean: int, spread: float, dice: random.Random) -> int:
    """A length with the given mean: fixed, or lognormal and at most LONGEST_SPREAD means."""
    if spread == 0:
        return mean
    drawn = dice.lognormvariate(math.log(mean) - spread * spread / 2, spread)
    return max(1, min(round(drawn), LONGEST_SPREAD * mean))


def text_of(prompt: list[int], words: Words, vocabulary: list[int]) -> str:
    """A text of exactly len(prompt) tokens under the tokenizer, as varied as the ids are.

    `vocabulary` holds ids that are one word with its leading space each (see single_words), so that they stay apart.
    """
    text = words.decode([vocabulary[token % len(vocabulary)] for token in prompt], skip_special=False)
    found = len(words.encode(text, add_special=False))
    if found != len(prompt):
        raise ValueError(f"a text of {len(prompt)} tokens came out as {found} under this tokenizer; use token ids")
    return text


def single_words(words: Words, first_id: int, last_id: int) -> list[int]:
    """Ids in [first_id, last_id] that decode to a space and lower-case ASCII letters, and encode back to themselves."""
    kept = []
    for token in range(first_id, last_id + 1):
        text = words.decode([token], skip_special=False)
        word = text.removeprefix(" ")
        plain = text.startswith(" ") and word.isascii() and word.isalpha() and word.islower()
        if plain and words.encode(text, add_special=False) == [token]:
            kept.append(token)
    if not kept:
        raise ValueError(f"the tokenizer has no words of one token between {first_id} and {last_id}")
    return kept
