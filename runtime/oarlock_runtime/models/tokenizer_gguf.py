"""Builds a tokenizer from a GGUF file's metadata: byte-level BPE ("gpt2") or SentencePiece BPE ("llama").

Runs in the server process, at its start, so it is made to be quick.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from oarlock_runtime.models.chat_template import ChatTemplate
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.gguf_header import LazyStrings, read_header
from oarlock_runtime.models.pretokenizers import BPE_STYLES, byte_level_bpe
from oarlock_runtime.models.tensors import MappedFile
from oarlock_runtime.models.tokenizer_source import TokenizerSource, add_ends

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Texts of tokens that end an answer in the supported families, whichever of them the file names as EOS.
END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|eom_id|>", "<|end|>")


def from_gguf(path: Path) -> TokenizerSource:
    """The tokenizer that a GGUF file carries."""
    return from_metadata(Fields(path, read_header(MappedFile(path)).values))


def from_metadata(fields: Fields) -> TokenizerSource:
    """The tokenizer of a header's `tokenizer.*` fields; CheckpointError names the one that is missing or unusable."""
    kind = fields.text(PREFIX + "model")
    tokens = string_list(fields, PREFIX + "tokens")
    types = _numbers(fields, PREFIX + "token_type", len(tokens)) or [NORMAL] * len(tokens)
    if kind == "gpt2":
        backend, add_bos = _byte_level(fields, tokens)
        spaced = False
    elif kind == "llama":
        scores = _numbers(fields, PREFIX + "scores", len(tokens))
        if scores is None:
            raise fields.error(PREFIX + "scores", "missing")
        spaced = fields.flag(PREFIX + "add_space_prefix", True)
        backend, add_bos = piece_backend(tokens, scores, types, spaced), True
    else:
        raise fields.error(PREFIX + "model", f"{kind!r} is not supported; supported are gpt2, llama")
    add_special_tokens(backend, tokens, types)
    bos, eos = _token_id(fields, "bos", len(tokens)), _token_id(fields, "eos", len(tokens))
    add_ends(
        backend,
        bos if fields.flag(PREFIX + "add_bos_token", add_bos) else None,
        eos if fields.flag(PREFIX + "add_eos_token", False) else None,
    )
    template = fields.text("tokenizer.chat_template", "")
    constants = {
        "bos_token": "" if bos is None else tokens[bos],
        "eos_token": "" if eos is None else tokens[eos],
    }
    return TokenizerSource(
        backend=backend,
        byte_level=kind == "gpt2",
        spaced=spaced,
        bos_id=bos,
        eos_ids=end_ids(fields, backend),
        template=ChatTemplate(template, constants) if template else None,
    )


def end_ids(fields: Fields, backend: Backend) -> tuple[int, ...]:
    """Every token that ends an answer: those the header names, and those known by their text."""
    named = [token for name in ("eos", "eot", "eom") for token in fields.ids(f"{PREFIX}{name}_token_id")]
    known = [backend.token_to_id(text) for text in END_TEXTS]
    return tuple(dict.fromkeys([*named, *(token for token in known if token is not None)]))


def string_list(fields: Fields, name: str) -> list[str]:
    """A list of strings of the header, decoded now if it was left lazy."""
    value = fields.get(name)
    if isinstance(value, LazyStrings):
        return value.values()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise fields.error(name, "missing" if value is None else "is not a list of strings")
    return value


def piece_backend(tokens: list[str], scores: list[Any], types: list[int], spaced: bool) -> Backend:
    """SentencePiece BPE over pieces with scores; `spaced` puts a space before every text."""
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    model = BPE(vocab, piece_merges(tokens, scores, types), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    dress_pieces(backend, spaced)
    return backend


def piece_merges(tokens: list[str], scores: list[Any], types: list[int]) -> list[tuple[str, str]]:
    """The merges that make every piece, in the order in which SentencePiece would take them."""
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    # SentencePiece joins the pair whose result scores best; the equivalent list of merges is every way to cut every
    # piece in two pieces, best result first.
    merges = []
    for token_id, token in enumerate(tokens):
        if types[token_id] != NORMAL:
            continue
        cuts = []
        for at in range(1, len(token)):
            left, right = vocab.get(token[:at]), vocab.get(token[at:])
            if left is not None and right is not None:
                cuts.append((left, right))
        merges += [(-scores[token_id], left, right) for left, right in sorted(cuts)]
    merges.sort(key=lambda merge: merge[0])
    return [(tokens[left], tokens[right]) for _, left, right in merges]


def dress_pieces(backend: Backend, spaced: bool, before: Sequence[Any] = ()) -> None:
    """Spells spaces as SentencePiece does, after the normalizers `before`; `spaced` puts one before every text."""
    spaces: list[Any] = [normalizers.Prepend("\u2581")] if spaced else []
    backend.normalizer = normalizers.Sequence([*before, *spaces, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def add_special_tokens(backend: Backend, tokens: list[str], types: list[int]) -> None:
    """Makes control and user-defined tokens whole: they are found in text before it is cut."""
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _byte_level(fields: Fields, tokens: list[str]) -> tuple[Backend, bool]:
    name = fields.text(PREFIX + "pre", "default")
    style = BPE_STYLES.get(name)
    if style is None:
        raise fields.error(PREFIX + "pre", f"{name!r} is not supported; supported are {', '.join(BPE_STYLES)}")
    merges = []
    for merge in string_list(fields, PREFIX + "merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    return byte_level_bpe(vocab, merges, style, f"{fields.file}: {PREFIX}merges"), style.add_bos


def _token_id(fields: Fields, name: str, count: int) -> int | None:
    token_id = next(iter(fields.ids(f"{PREFIX}{name}_token_id")), None)
    if token_id is not None and token_id >= count:
        raise fields.error(f"{PREFIX}{name}_token_id", f"{token_id} is not below {count}, the size of the vocabulary")
    return token_id


def _numbers(fields: Fields, name: str, count: int) -> list[Any] | None:
    value = fields.get(name)
    if value is None:
        return None
    found: list[Any] = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, list) or len(found) != count:
        raise fields.error(name, f"is not a list of {count} numbers, one for each token")
    return found
