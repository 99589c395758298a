"""Reads a SentencePiece tokenizer.model: a protocol buffer of pieces, scores and types. Runs in the server process.

Only the few fields needed are looked at, so no protobuf library is.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oarlock_runtime.models.errors import CheckpointError

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
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                model.pieces.append(piece[1].decode("utf-8"))
                model.scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                model.types.append(piece.get(3, 1))
            elif number == 2:
                model.kind = dict(_fields(value)).get(3, 1)
            elif number == 3:
                model.spaced = bool(dict(_fields(value)).get(3, 1))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: is damaged, or not a SentencePiece model") from error
    if not model.pieces:
        raise CheckpointError(f"{path}: is damaged, or not a SentencePiece model")
    if model.kind != BPE:
        raise CheckpointError(f"{path}: {KINDS.get(model.kind, 'unknown')} models are not supported; supported is bpe")
    return model


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value of a message: an int, four or eight bytes, or the bytes of a string or message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[kind]
        if at + size > len(data):
            raise ValueError("a field passes the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")
