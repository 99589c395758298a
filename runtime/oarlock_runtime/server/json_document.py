"""Bodies and payloads as plain Python, within bounds: no body of the allowed size may hold up the other clients.

Runs in the server processes. A list costs the decoder some 0.2 us, so that 4 MiB of empty lists would take a third of a
second; everything else is bounded well enough by the size of the body.
"""

from typing import Any

import msgspec
import numpy as np

MAX_CONTAINERS = 1 << 16  # lists and objects in one body
_QUOTE, _COMMON = ord('"'), (b"[", b"{")


class CrowdedError(ValueError):
    """The document holds more lists and objects than are taken."""

    def __init__(self) -> None:
        super().__init__(f"it holds more than {MAX_CONTAINERS} lists and objects")


def decode(data: bytes) -> Any:
    """The document. CrowdedError, msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
    check_crowd(data)
    return msgspec.json.decode(data)


def check_crowd(data: bytes) -> None:
    """Raises CrowdedError. Costs a few microseconds, or some 20 ms where the text itself is full of brackets."""
    if sum(map(data.count, _COMMON)) > MAX_CONTAINERS and _containers(data) > MAX_CONTAINERS:
        raise CrowdedError


def _containers(data: bytes) -> int:
    """Brackets and braces that open outside of strings (for JSON; of other data the number means nothing)."""
    plain = np.frombuffer(data.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    within = np.bitwise_xor.accumulate((plain == _QUOTE).view(np.uint8))
    opens = (plain == ord("[")) | (plain == ord("{"))
    return int(np.count_nonzero(opens & (within == 0)))
