"""The engine's end of the socket. Engine process, one thread: the engine's own loop.

    with EngineSocket(run_dir, ready) as socket:
        while running:
            for message in socket.receive(0 if engine.has_work else IDLE_SECONDS):
                ...  # engine.add and socket.accept or socket.reject; engine.abort
            if output := engine.step():
                socket.send(output)
            socket.beat(engine.stats)

Nothing here waits for a server. What one that reads too slowly has not taken is kept for it, up to a bound; then, or
when it is silent for too long or gone, it is dropped, and its requests come out of receive() as aborted. Should it come
back, it is told to end itself.
"""

import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from oarlock_runtime.engine.output import StepOutput
from oarlock_runtime.engine.request import Finish, Request
from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.address import engine_address
from oarlock_runtime.ipc.messages import (
    AbortRequests,
    Accepted,
    AddRequest,
    EngineFailed,
    EngineReady,
    Heartbeat,
    Hello,
    Rejected,
    ToEngine,
    ToServer,
)
from oarlock_runtime.ipc.packing import LOCAL_BITS, LOCAL_MASK, pack_output, split_output
from oarlock_runtime.ipc.peer import Peer

BEAT_SECONDS = 0.5
IDLE_SECONDS = BEAT_SECONDS  # how long an engine without work may sleep in receive
SILENCE_SECONDS = 30.0  # a server that sends no ping for so long is taken for dead
QUEUE_BYTES = 64 << 20  # kept for a server that does not read
LAST_WORDS_SECONDS = 1.0  # to deliver what was sent before the socket closes

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Client:
    """A server process. `name` is empty until it has said hello; `dropped`: only last words are still to be sent."""

    number: int
    peer: Peer
    heard: float
    name: str = ""
    dropped: bool = False
    requests: set[int] = field(default_factory=set)  # those that have not ended, in the engine's ids


class EngineSocket:
    """Receives requests from any number of server processes and sends each its part of a step's output."""

    def __init__(self, run_dir: Path, ready: EngineReady) -> None:
        self._path = Path(engine_address(run_dir))
        self._path.unlink(missing_ok=True)  # of an engine that was killed
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._ready = ready
        self._connected: dict[int, _Client] = {}  # by file descriptor
        self._clients: dict[int, _Client] = {}  # by number: those that have said hello and were not dropped
        self._next_number = 1
        self._inbox: list[AddRequest | AbortRequests] = []
        self._last_beat = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delivers what was sent, for up to a second, and takes the socket away."""
        self._poll.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        end = time.monotonic() + LAST_WORDS_SECONDS
        for client in self._connected.values():
            client.dropped = True
            self._finish(client)
        while self._connected and (left := end - time.monotonic()) > 0:
            self._turn(left)
        for client in list(self._connected.values()):
            self._disconnect(client)
        self._poll.close()

    def receive(self, timeout: float) -> list[AddRequest | AbortRequests]:
        """What servers want, with engine-wide request ids. Sleeps until a message comes, for at most `timeout` s."""
        self._turn(0 if self._inbox else timeout)
        received, self._inbox = self._inbox, []
        return received

    def accept(self, request_ids: Iterable[int]) -> None:
        """Tells the servers that the engine has taken these requests."""
        accepted: dict[int, list[int]] = {}
        for request_id in request_ids:
            accepted.setdefault(request_id >> LOCAL_BITS, []).append(request_id & LOCAL_MASK)
        for number, ids in accepted.items():
            client = self._clients.get(number)
            if client is not None:
                self._send(client, Accepted(ids))

    def reject(self, request_id: int, error: RequestError) -> None:
        """Tells the server why the engine has not taken a request."""
        client = self._clients.get(request_id >> LOCAL_BITS)
        if client is not None:
            client.requests.discard(request_id)
            local = request_id & LOCAL_MASK
            self._send(
                client,
                Rejected(local, error.field, error.message, error.status, error.code, error.kind, error.retry_after),
            )

    def send(self, output: StepOutput) -> None:
        """Sends each server its part of the output."""
        for number, part in split_output(output):
            client = self._clients.get(number)
            if client is not None:
                if part.finish.any():
                    client.requests.difference_update(part.request_ids[part.finish != Finish.RUNNING].tolist())
                self._send(client, pack_output(part))

    def beat(self, stats: Callable[[], EngineStats]) -> None:
        """To be called each time the loop comes round; sends a heartbeat when one is due and drops silent servers."""
        now = time.monotonic()
        if now - self._last_beat < BEAT_SECONDS:
            return
        self._last_beat = now
        for client in list(self._connected.values()):
            if now - client.heard <= SILENCE_SECONDS:
                continue
            if client.dropped:
                self._disconnect(client)
            else:
                self._drop(client, f"was silent for {SILENCE_SECONDS:g} s")
        self._broadcast(Heartbeat(stats()))

    def fail(self, reason: str) -> None:
        """The engine's last words."""
        self._broadcast(EngineFailed(reason))

    # ---- connections

    def _turn(self, timeout: float) -> None:
        """Waits until something happens, and takes it: a new connection, messages, room to send."""
        for descriptor, event in self._poll.poll(timeout):
            client = self._connected.get(descriptor)
            if client is None:
                if descriptor == self._listener.fileno():
                    self._accept()
                continue
            try:
                if event & select.EPOLLOUT:
                    self._flush(client)
                if event & ~select.EPOLLOUT:
                    for message in client.peer.receive():
                        self._handle(client, message)
            except ConnectionError:
                self._lose(client)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has left again
        client = _Client(self._next_number, Peer(connection), time.monotonic())
        self._next_number += 1
        self._connected[connection.fileno()] = client
        self._poll.register(connection, select.EPOLLIN)

    def _handle(self, client: _Client, frame: bytes) -> None:
        if client.dropped:
            return  # its requests were ended, and it will be told
        try:
            message = self._decoder.decode(frame)
        except msgspec.MsgspecError as error:
            log.error("a server process sent a message that is none: %s", error)
            return
        client.heard = time.monotonic()
        base = client.number << LOCAL_BITS
        if isinstance(message, Hello):
            client.name = f"{message.name} (pid {message.pid})"
            self._clients[client.number] = client
            self._send(client, self._ready)
        elif isinstance(message, AddRequest):
            request_id = base | message.request_id
            client.requests.add(request_id)
            self._inbox.append(msgspec.structs.replace(message, request_id=request_id))
        elif isinstance(message, AbortRequests):
            ids = [base | request_id for request_id in message.request_ids]
            client.requests.difference_update(ids)
            self._inbox.append(AbortRequests(ids))

    def _broadcast(self, message: ToServer) -> None:
        for client in list(self._clients.values()):
            self._send(client, message)

    def _send(self, client: _Client, message: ToServer) -> None:
        peer = client.peer
        try:
            peer.send(self._encoder.encode(message))
        except ConnectionError:
            self._lose(client)
            return
        if peer.unsent:
            self._poll.modify(peer.connection, select.EPOLLIN | select.EPOLLOUT)
            if peer.unsent > QUEUE_BYTES and not client.dropped:
                self._drop(client, f"left {QUEUE_BYTES} bytes unread")

    def _flush(self, client: _Client) -> None:
        client.peer.flush()
        if not client.peer.unsent:
            self._poll.modify(client.peer.connection, select.EPOLLIN)
            if client.dropped:
                self._finish(client)

    def _finish(self, client: _Client) -> None:
        """Says, once all is sent, that no more will come; the other end then closes the connection."""
        if not client.peer.unsent:
            with contextlib.suppress(OSError):
                client.peer.connection.shutdown(socket.SHUT_WR)

    # ---- servers that leave

    def _drop(self, client: _Client, why: str) -> None:
        """Ends the requests of a server, and tells it so when it reads again."""
        self._end_requests(client, why)
        client.dropped = True
        client.heard = time.monotonic()  # it has as much time again to take its last message
        client.peer.forget_unsent()
        reason = "the engine had dropped this server process, which did not answer in time"
        self._send(client, EngineFailed(reason))
        self._finish(client)

    def _lose(self, client: _Client) -> None:
        """Its connection is closed."""
        if not client.dropped:
            self._end_requests(client, "is gone")
        self._disconnect(client)

    def _end_requests(self, client: _Client, why: str) -> None:
        if self._clients.pop(client.number, None) is not None:
            log.warning("server process %s %s; its %d requests end", client.name, why, len(client.requests))
            if client.requests:
                self._inbox.append(AbortRequests(sorted(client.requests)))

    def _disconnect(self, client: _Client) -> None:
        connection = client.peer.connection
        if self._connected.pop(connection.fileno(), None) is not None:
            self._poll.unregister(connection)
            connection.close()


def request_of(message: AddRequest) -> Request:
    """The engine's request that a message asks for. Raises RequestError when the prompt is no array of int32."""
    if len(message.prompt) % 4:
        raise RequestError("prompt", f"the prompt has {len(message.prompt)} bytes; token ids take 4 each")
    prompt = np.frombuffer(message.prompt, np.int32)
    return Request(message.request_id, prompt, message.sampling, message.cache_salt)
