"""One server process's connection as the engine sees it: what came, and what it has not yet taken. Engine process.

Nothing here waits: what the connection has no room for is kept, up to a bound that the caller looks at.
"""

import socket
from collections import deque

from oarlock_runtime.ipc.framing import FrameReader, framed

READ_BYTES = 1 << 20  # taken from a connection at a time


class Peer:
    """A connection. `unsent` is the number of bytes that wait for it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.unsent = 0
        self._reader = FrameReader()
        self._frames: deque[bytes] = deque()
        self._begun = 0  # bytes of the first frame that are gone

    def receive(self) -> list[bytes]:
        """The messages that have come. ConnectionError when the other end has closed, or speaks another language."""
        try:
            data = self.connection.recv(READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        try:
            return self._reader.feed(data)
        except ValueError as error:
            raise ConnectionAbortedError(str(error)) from None

    def send(self, message: bytes) -> None:
        """Sends a message, or keeps what there is no room for. ConnectionError when the other end has closed."""
        frame = framed(message)
        self._frames.append(frame)
        self.unsent += len(frame)
        if len(self._frames) == 1:
            self.flush()

    def flush(self) -> None:
        """Sends what was kept, as far as there is room. ConnectionError when the other end has closed."""
        frames = self._frames
        while frames:
            try:
                sent = self.connection.send(memoryview(frames[0])[self._begun :])
            except BlockingIOError:
                return
            self.unsent -= sent
            self._begun += sent
            if self._begun < len(frames[0]):
                return
            frames.popleft()
            self._begun = 0

    def forget_unsent(self) -> None:
        """Of what was kept, only the frame that has begun to leave will be sent."""
        while len(self._frames) > (self._begun > 0):
            self.unsent -= len(self._frames.pop())
