"""Writes a safetensors file, tensor by tensor, so that it needs little memory. Runs in the command line."""

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oarlock_runtime.models.tensors import DENSE, Array


class SafetensorsWriter:
    """A file being written: the header at once, then the rows of every entry, (name, dtype, shape), in that order.

    dtype is f32, f16 or bf16, whose rows come as uint16. Leaving the context with an error removes the file.
    """

    def __init__(self, path: Path, entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        self.path = path
        # Readers that ask what framework wrote a file want this key.
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, dtype, shape in entries:
            size = math.prod(shape) * DENSE[dtype]
            header[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, rows: Array) -> None:
        """The next rows of the tensor at hand, or of the next one."""
        self._file.write(rows.data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None:
            self.path.unlink(missing_ok=True)
