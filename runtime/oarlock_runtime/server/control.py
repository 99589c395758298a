"""The line between the supervisor and each process it starts: small JSON messages over a pair of sockets.

Messages keep their borders (SOCK_SEQPACKET) and sending never waits: a message that the other end has no room for is
dropped, so that a stuck supervisor can't stop the engine. An end that closes is how each side learns of the other's
death.

From a process: loading, error, ready, beat, idle, left, metrics, path. To a process: settings (the first), drain, stop,
failed, scrape.
"""

import json
import socket
from typing import Any

MAX_MESSAGE = 1 << 20  # bytes
_BUFFER = 4 << 20


class Control:
    """One end. Threads may send at the same time."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    @classmethod
    def pair(cls) -> tuple["Control", socket.socket]:
        """The supervisor's end, which never blocks, and the one that a process inherits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), theirs

    def send(self, kind: str, **content: Any) -> bool:
        """Whether the message went out."""
        try:
            self.socket.send(json.dumps({"kind": kind, **content}).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message; None once the other end is closed. BlockingIOError: none is there (supervisor's end)."""
        try:
            data = self.socket.recv(MAX_MESSAGE)
        except ConnectionError:
            return None
        if not data:
            return None
        message: dict[str, Any] = json.loads(data)
        return message

    def close(self) -> None:
        self.socket.close()
