"""Bodies and payloads as plain Python, within bounds: no body of the allowed size may hold up the other clients.

Runs in the server processes. A list costs the decoder some 0.2 us and a member of an object as much, so that 4 MiB of
empty lists would take a third of a second; everything else is bounded well enough by the size of the body.
"""

from typing import Any

import msgspec
import numpy as np

MAX_PARTS = 1 << 16  # lists, objects and members of objects in one body
_PIECE = 1 << 18  # bytes looked at together
_QUOTE, _SIGNS = ord('"'), (b"[", b"{", b":")


class CrowdedError(ValueError):
    """The document holds more parts than are taken."""

    def __init__(self) -> None:
        super().__init__(f"it holds more than {MAX_PARTS} lists, objects and members of objects")


def decode(data: bytes) -> Any:
    """The document. CrowdedError, msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
    check_crowd(data)
    return msgspec.json.decode(data)


def check_crowd(data: bytes) -> None:
    """Raises CrowdedError. Costs a few microseconds, or some 20 ms for 4 MiB of text that is full of brackets."""
    if sum(map(data.count, _SIGNS)) > MAX_PARTS and _parts(data, MAX_PARTS) > MAX_PARTS:
        raise CrowdedError


def _parts(data: bytes, enough: int) -> int:
    """Opening brackets and braces, and colons, outside of strings; it stops counting above `enough`.

    Of what is no JSON the number means nothing.
    """
    plain = np.frombuffer(data.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    count = 0
    quoted = False  # whether the piece begins within a string
    for start in range(0, len(plain), _PIECE):
        piece = plain[start : start + _PIECE]
        within = np.logical_xor.accumulate(piece == _QUOTE) ^ quoted
        signs = (piece == ord("[")) | (piece == ord("{")) | (piece == ord(":"))
        count += int(np.count_nonzero(signs & ~within))
        quoted = bool(within[-1])
        if count > enough:
            break
    return count
