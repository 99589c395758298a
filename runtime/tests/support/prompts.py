"""Twenty varied prompts for teacher forcing, each with 48 tokens that follow.

The continuations are the greedy ones of support.reference with SmolLM2-135M-Instruct (Q4_1), past end tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime.models.tokenizer import Tokenizer

FILE = Path(__file__).with_name("prompts.json")


@dataclass(frozen=True)
class ForcedText:
    """Token ids of a prompt and of what follows. Rows len(prompt) - 1 to the last but one predict the continuation."""

    prompt: list[int]
    continuation: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.continuation

    @property
    def rows(self) -> range:
        """The rows of `forward(ids)` whose next token is one of the continuation's."""
        return range(len(self.prompt) - 1, len(self.ids) - 1)


def forced_texts(tokenizer: Tokenizer) -> list[ForcedText]:
    """All twenty, tokenized with SmolLM2's tokenizer."""
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    return [ForcedText(tokenizer.encode(entry["prompt"]), entry["continuation"]) for entry in entries]
