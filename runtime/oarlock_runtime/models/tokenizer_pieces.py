"""Builds a tokenizer from a SentencePiece model file. Runs in the server process.

SentencePiece's own rules for both kinds of models, carried out by the `tokenizers` library. They give the same ids, but
where a model has a table of characters to replace (Llama's have none) and a combining mark follows a replaced one.
"""

from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, Unigram

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.sentencepiece_model import UNIGRAM, PieceModel, read_piece_model
from oarlock_runtime.models.tokenizer_gguf import UNKNOWN, add_special_tokens, dress_pieces, piece_merges


def from_piece_model(file: Path) -> tuple[Backend, PieceModel]:
    """The tokenizer of a .model file, and what the file holds. CheckpointError when it can't be used."""
    model = read_piece_model(file)
    try:
        backend = Backend(_pieces(model))
    except Exception as error:  # the library raises its base class
        raise CheckpointError(f"{file}: {error}") from error
    before: list[Any] = []
    if model.charsmap:
        try:
            before.append(normalizers.Precompiled(model.charsmap))
        except Exception as error:
            raise CheckpointError(f"{file}: precompiled_charsmap: {error}") from error
    if model.trimmed:
        # No other white space is trimmed; at the end the library sees U+2581 as the space that it stands for.
        spaces = [(r"\A +| *[\u2581 ]+\z", ""), (" {2,}", " ")]
        before += [normalizers.Replace(Regex(pattern), text) for pattern, text in spaces]
    dress_pieces(backend, model.spaced, before)
    add_special_tokens(backend, model.pieces, model.types)
    return backend, model


def _pieces(model: PieceModel) -> Any:
    unknown = model.types.index(UNKNOWN) if UNKNOWN in model.types else None
    if model.kind == UNIGRAM:
        scored = list(zip(model.pieces, model.scores, strict=True))
        return Unigram(scored, unknown, model.byte_fallback)
    return BPE(
        {piece: token_id for token_id, piece in enumerate(model.pieces)},
        piece_merges(model.pieces, model.scores, model.types),
        unk_token=None if unknown is None else model.pieces[unknown],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )
