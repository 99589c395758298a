"""Reads a SentencePiece tokenizer.model: a protocol buffer of pieces, scores and types. Runs in the server process.

Only the few fields needed are looked at, so no protobuf library is.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.protobuf import message_fields

BPE = 2
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass
class PieceModel:
    """Pieces in the order of their ids; types as in GGUF (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte)."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = 1
    spaced: bool = True  # a space goes before the text


def read_piece_model(path: Path) -> PieceModel:
    """CheckpointError when the file is damaged, or not a BPE model."""
    model = PieceModel()
    try:
        for number, value in message_fields(path.read_bytes()):
            if number == 1:
                piece = dict(message_fields(value))
                model.pieces.append(piece[1].decode("utf-8"))
                model.scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                model.types.append(piece.get(3, 1))
            elif number == 2:
                model.kind = dict(message_fields(value)).get(3, 1)
            elif number == 3:
                model.spaced = bool(dict(message_fields(value)).get(3, 1))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: is damaged, or not a SentencePiece model") from error
    if not model.pieces:
        raise CheckpointError(f"{path}: is damaged, or not a SentencePiece model")
    if model.kind != BPE:
        raise CheckpointError(f"{path}: {KINDS.get(model.kind, 'unknown')} models are not supported; supported is bpe")
    return model
