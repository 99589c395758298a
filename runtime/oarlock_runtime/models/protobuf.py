"""Reads the fields of a protocol buffer message, for the few files of which only some fields are wanted.

Used by the server and engine processes. No schema and no protobuf library; sizes are checked before anything is taken.
"""

from collections.abc import Iterator
from typing import Any


def message_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value of a message: an int, four or eight bytes, or the bytes of a string or message.

    ValueError, IndexError or KeyError when `data` is no message.
    """
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = read_varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = read_varint(data, at)
        else:
            size = {1: 8, 5: 4}[kind]
        if at + size > len(data):
            raise ValueError("a field passes the end")
        yield number, data[at : at + size]
        at += size


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def signed(value: int) -> int:
    """A varint's 64 bits as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def packed_or_single(value: Any) -> list[int]:
    """The numbers of one occurrence of a repeated field: packed in bytes, or one by itself."""
    if isinstance(value, int):
        return [signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        numbers.append(signed(number))
    return numbers
