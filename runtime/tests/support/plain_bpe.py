"""SmolLM2's tokenization in plain Python: what the tokenizer built from a GGUF is compared with.

Words are cut as the model's own tokenizer.json says (every digit by itself, the rest by GPT-2's rule), and the bytes of
a word joined by the best-ranked merge until none is left. A few bytes, none of them in usual text, are no tokens of
SmolLM2; they vanish.
"""

import unicodedata
from collections.abc import Iterator

from oarlock_runtime.models.detokenizer import CHARACTER_OF_BYTE

ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def encode(text: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int], special: list[str]) -> list[int]:
    """Token ids of text."""
    ids = []
    for part, whole in _cut_at(text, special):
        if whole:
            ids.append(vocab[part])
            continue
        for stretch in _around_digits(part):
            for word in _words(stretch):
                ids += [vocab[token] for token in _merge(word, ranks) if token in vocab]
    return ids


def _cut_at(text: str, special: list[str]) -> Iterator[tuple[str, bool]]:
    """Stretches of text, and the special tokens between them."""
    start = at = 0
    while at < len(text):
        token = max((token for token in special if text.startswith(token, at)), key=len, default=None)
        if token is None:
            at += 1
            continue
        yield text[start:at], False
        yield token, True
        start = at = at + len(token)
    yield text[start:], False


def _around_digits(text: str) -> Iterator[str]:
    start = 0
    for at, character in enumerate(text):
        if _is_number(character):
            yield text[start:at]
            yield character
            start = at + 1
    yield text[start:]


def _words(text: str) -> Iterator[str]:
    """GPT-2's words: 's|'t|'re|'ve|'m|'ll|'d| ?letters+| ?numbers+| ?others+|space+ not before a word|space+."""
    at = 0
    while at < len(text):
        ending = next((ending for ending in ENDINGS if text.startswith(ending, at)), None)
        if ending is not None:
            end = at + len(ending)
        else:
            first = at + 1 if text[at] == " " and at + 1 < len(text) and not _is_space(text[at + 1]) else at
            kind = _kind(text[first])
            end = first
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
            if kind == "space" and end < len(text) and end - first > 1:
                end -= 1  # the last space belongs to the word after it
        yield text[at:end]
        at = end


def _merge(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    tokens = [CHARACTER_OF_BYTE[byte] for byte in word.encode()]
    while len(tokens) > 1:
        rank, at = min((ranks.get((tokens[at], tokens[at + 1]), 1 << 30), at) for at in range(len(tokens) - 1))
        if rank == 1 << 30:
            break
        tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
    return tokens


def _kind(character: str) -> str:
    if _is_space(character):
        return "space"
    if _is_number(character):
        return "number"
    return "letter" if unicodedata.category(character).startswith("L") else "other"


def _is_number(character: str) -> bool:
    return unicodedata.category(character).startswith("N")


def _is_space(character: str) -> bool:
    """Unicode's White_Space, which leaves out the four separators that Python counts."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"
