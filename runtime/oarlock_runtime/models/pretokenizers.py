"""Byte-level BPE tokenizers, and how they cut text into words, by the names that GGUF files use for it.

A GGUF names its pre-tokenizer but doesn't carry it, so the patterns are here; each gives the words that the model's own
tokenizer.json gives. Runs in the server process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Regex, decoders, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers as stages
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from oarlock_runtime.models.errors import CheckpointError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + REST
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + REST
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + REST
)


def _matches(*patterns: str) -> PreTokenizer:
    """Cuts at every match of the patterns, one after the other, then spells words as bytes."""
    cuts = [stages.Split(Regex(pattern), "isolated") for pattern in patterns]
    return stages.Sequence([*cuts, stages.ByteLevel(add_prefix_space=False, use_regex=False)])


def _digits() -> PreTokenizer:
    """Every digit is a word; the rest as GPT-2 cuts it."""
    return stages.Sequence([stages.Digits(individual_digits=True), stages.ByteLevel(add_prefix_space=False)])


@dataclass(frozen=True)
class BpeStyle:
    """What the name of a pre-tokenizer decides.

    whole_words: a word that is a token is taken as it is, without merging. compose: text is brought to NFC first.
    add_bos: whether prompts begin with the BOS token where the file doesn't say.
    """

    split: Callable[[], PreTokenizer]
    whole_words: bool = False
    compose: bool = False
    add_bos: bool = False


def byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], style: BpeStyle, source: Path | str
) -> Backend:
    """A byte-level tokenizer of that style. CheckpointError names `source` when vocabulary and merges don't fit."""
    try:
        backend = Backend(BPE(vocab, merges, ignore_merges=style.whole_words))
    except Exception as error:  # the library raises its base class
        raise CheckpointError(f"{source}: {error}") from error
    backend.pre_tokenizer = style.split()
    backend.decoder = decoders.ByteLevel()
    if style.compose:
        backend.normalizer = normalizers.NFC()
    return backend


_LLAMA3 = BpeStyle(partial(_matches, LLAMA3), whole_words=True, add_bos=True)
_QWEN2 = BpeStyle(partial(_matches, QWEN2), compose=True)
_DIGITS = BpeStyle(partial(_digits))
_GPT2 = BpeStyle(partial(stages.ByteLevel, add_prefix_space=False))
BPE_STYLES = {
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "gpt-2": _GPT2,
    "gpt2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": BpeStyle(partial(_matches, LLAMA3)),
    "dbrx": BpeStyle(partial(_matches, LLAMA3)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": BpeStyle(partial(_matches, TEKKEN), whole_words=True, add_bos=True),
    "default": BpeStyle(partial(_matches, r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
