"""Reads a SentencePiece tokenizer.model: a protocol buffer of pieces, scores and types. Runs in the server process.

Only the few fields needed are looked at, so no protobuf library is.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.protobuf import message_fields

UNIGRAM, BPE = 1, 2  # kinds of models
BYTE = 6  # a type of pieces
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass
class PieceModel:
    """Pieces in the order of their ids; types as in GGUF (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte)."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = 1
    spaced: bool = True  # a space goes before the text
    trimmed: bool = True  # runs of spaces become one, and none is left at the ends
    charsmap: bytes = b""  # the library's compiled table of characters to replace first

    @property
    def byte_fallback(self) -> bool:
        """Whether a character that no piece has is spelled as bytes."""
        return BYTE in self.types


def read_piece_model(path: Path) -> PieceModel:
    """CheckpointError when the file is damaged, or not a unigram or BPE model."""
    model = PieceModel()
    suffixed, escaped = False, True
    try:
        for number, value in message_fields(path.read_bytes()):
            if number == 1:
                piece = dict(message_fields(value))
                model.pieces.append(piece[1].decode("utf-8"))
                model.scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                model.types.append(piece.get(3, 1))
            elif number == 2:
                trained = dict(message_fields(value))
                model.kind = trained.get(3, 1)
                suffixed = bool(trained.get(24, 0))
            elif number == 3:
                normalizer = dict(message_fields(value))
                model.spaced = bool(normalizer.get(3, 1))
                model.trimmed = bool(normalizer.get(4, 1))
                model.charsmap = bytes(normalizer.get(2, b""))
                escaped = bool(normalizer.get(5, 1))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: is damaged, or not a SentencePiece model") from error
    if not model.pieces:
        raise CheckpointError(f"{path}: is damaged, or not a SentencePiece model")
    if model.kind not in (UNIGRAM, BPE):
        kind = KINDS.get(model.kind, "unknown")
        raise CheckpointError(f"{path}: {kind} models are not supported; supported are unigram and bpe")
    if suffixed or not escaped:
        name = "treat_whitespace_as_suffix" if suffixed else "escape_whitespaces"
        raise CheckpointError(f"{path}: {name} is {str(suffixed).lower()}, which is not supported")
    return model
