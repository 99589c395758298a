"""The header of a GGUF file: its metadata and where its tensors lie.

The gguf library's reader makes an object for every token of the vocabulary, which takes seconds; this one walks the
lengths of long string arrays only when they are asked for. Every length is checked against the file's size.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.tensors import MappedFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Value types by their number in the file: struct codes, and numpy's for arrays.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_ENTRIES = 1 << 20  # metadata entries, and tensors


@dataclass(frozen=True)
class LazyStrings:
    """An array of strings that was stepped over: `values` decodes it. Bytes that are not UTF-8 are replaced."""

    file: MappedFile
    offset: int
    count: int

    def values(self) -> list[str]:
        buffer, at, out = self.file.buffer, self.offset, []
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(self.count):
            start = at + 8
            at = start + length_of(buffer, at)[0]
            out.append(buffer[start:at].decode("utf-8", "replace"))
        return out


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header lists it: shape outermost first, GGML type number, offset from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata values are Python scalars, strings, lists (short arrays), numpy arrays or LazyStrings."""

    version: int
    values: dict[str, Any]
    tensors: list[TensorEntry]


def read_header(file: MappedFile) -> GgufHeader:
    """Parses the header. CheckpointError when the file is no GGUF, is of an unknown version, or ends too early."""
    if bytes(file.buffer[:4]) != MAGIC:
        raise CheckpointError(f"{file.path}: not a GGUF file (it does not begin with 'GGUF')")
    return _Cursor(file).header()


class _Cursor:
    """A position in the file that refuses to pass its end."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.path: Path = file.path
        self.at = 4
        self.what = "header"

    def header(self) -> GgufHeader:
        version = self.scalar("I")
        if version not in VERSIONS:
            # A big-endian file shows its version in the upper bytes.
            raise CheckpointError(f"{self.path}: GGUF version {version} is not supported; supported are 2 and 3")
        tensor_count, value_count = self.count(), self.count()
        values: dict[str, Any] = {}
        for _ in range(value_count):
            self.what = "metadata"
            key = self.string()
            self.what = key
            values[key] = self.value(self.scalar("I"))
        entries = [self.tensor() for _ in range(tensor_count)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.path}: general.alignment: {alignment!r} is not a power of two")
        data = -(-self.at // alignment) * alignment
        placed = [TensorEntry(entry.name, entry.shape, entry.type, data + entry.offset) for entry in entries]
        return GgufHeader(version, values, placed)

    def tensor(self) -> TensorEntry:
        self.what = "list of tensors"
        name = self.string()
        self.what = name
        dims = self.scalar("I")
        if not 1 <= dims <= 4:
            raise CheckpointError(f"{self.path}: {name}: {dims} dimensions; expected 1 to 4")
        shape = tuple(self.scalar("Q") for _ in range(dims))[::-1]
        kind, offset = self.scalar("I"), self.scalar("Q")
        return TensorEntry(name, shape, kind, offset)

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY:
            raise CheckpointError(f"{self.path}: {self.what}: unknown value type {kind}")
        item, count = self.scalar("I"), self.scalar("Q")
        if item == STRING:
            return self.strings(count)
        if item not in SCALARS:
            raise CheckpointError(f"{self.path}: {self.what}: arrays of value type {item} are not supported")
        dtype = np.dtype("<" + SCALARS[item])
        start = self.advance(count * dtype.itemsize)
        array = self.file.view(start, count, dtype)
        return array.tolist() if count <= 1024 else array

    def strings(self, count: int) -> LazyStrings | list[str]:
        """Steps over an array of strings; a short one is decoded at once."""
        self.within(count * 8)
        found = LazyStrings(self.file, self.at, count)
        buffer, at, end = self.file.buffer, self.at, self.file.size
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                self.truncated()
            at += 8 + length_of(buffer, at)[0]
        self.at = at
        self.within(0)
        return found if count > 256 else found.values()

    def string(self) -> str:
        length = self.scalar("Q")
        start = self.advance(length)
        return self.file.buffer[start : start + length].decode("utf-8", "replace")

    def count(self) -> int:
        count: int = self.scalar("Q")
        if count > MAX_ENTRIES:
            raise CheckpointError(f"{self.path}: the header claims {count} entries; the file is damaged")
        return count

    def scalar(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self.file.buffer, self.advance(layout.size))[0]

    def advance(self, size: int) -> int:
        self.within(size)
        start, self.at = self.at, self.at + size
        return start

    def within(self, size: int) -> None:
        if self.at + size > self.file.size:
            self.truncated()

    def truncated(self) -> None:
        raise CheckpointError(f"{self.path}: ends within {self.what} ({self.file.size} bytes); it is truncated")
