"""Messages on a stream socket: four bytes of length, then the message. Both ends of the engine's socket use it."""

import struct

LONGEST_FRAME = 1 << 30  # bytes; a message that claims more is none

_length = struct.Struct("=I")


def framed(message: bytes) -> bytes:
    """The message as it goes over the socket."""
    return _length.pack(len(message)) + message


class FrameReader:
    """Cuts what a socket gives into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a frame

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes. Raises ValueError when it can't be a frame."""
        head = _length.size
        if not self._rest and len(data) >= head and _length.unpack_from(data)[0] == len(data) - head:
            return [data[head:]]
        messages = []
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= head:
            (length,) = _length.unpack_from(rest, at)
            if length > LONGEST_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = at + head + length
            if end > len(rest):
                break
            messages.append(bytes(rest[at + head : end]))
            at = end
        del rest[:at]
        return messages
