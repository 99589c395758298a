"""What every way of loading a tokenizer delivers. Runs in the server process."""

from dataclasses import dataclass

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from oarlock_runtime.models.chat_template import ChatTemplate


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer of the `tokenizers` library and what it doesn't tell by itself.

    byte_level: tokens are written in byte-level BPE's characters, else in SentencePiece's. spaced: encoding puts a
    space before the text.
    """

    backend: Backend
    byte_level: bool
    spaced: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    template: ChatTemplate | None


def add_ends(backend: Backend, before: int | None, after: int | None) -> None:
    """Lets `encode(add_special_tokens=True)` put a token before and after the text; None for no token."""
    special = [(backend.id_to_token(token_id), token_id) for token_id in (before, after) if token_id is not None]
    if special:
        words = [text for text, _ in special]
        words.insert(0 if before is None else 1, "$A")
        backend.post_processor = processors.TemplateProcessing(single=words, special_tokens=special)
