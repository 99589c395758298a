"""The engine's end of the socket. Engine process, one thread: the engine's own loop.

    with EngineSocket(run_dir, ready) as socket:
        while running:
            for message in socket.receive(0 if engine.has_work else IDLE_SECONDS):
                ...  # engine.add and socket.accept or socket.reject; engine.abort
            if output := engine.step():
                socket.send(output)
            socket.beat(engine.stats)

Nothing here waits for a server. One that reads too slowly fills its queue; then, or when it is silent for too long or
gone, it is dropped, and its requests come out of receive() as aborted. Should it come back, it is told to end itself.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
import zmq

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

BEAT_SECONDS = 0.5
IDLE_SECONDS = BEAT_SECONDS  # how long an engine without work may sleep in receive
SILENCE_SECONDS = 30.0  # a server that sends no ping for so long is taken for dead
QUEUE_MESSAGES = 4096  # in each direction, for each server
RECEIVE_AT_ONCE = 1024  # messages taken before the next step
LAST_WORDS_MS = 1000  # to deliver what was sent before the socket closes

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Client:
    """A server process."""

    number: int
    identity: bytes
    name: str
    heard: float
    requests: set[int] = field(default_factory=set)  # those that have not ended, in the engine's ids


class EngineSocket:
    """Receives requests from any number of server processes and sends each its part of a step's output."""

    def __init__(self, run_dir: Path, ready: EngineReady) -> None:
        self._ready = ready
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a server that is gone is an error, not silence
        self._socket.setsockopt(zmq.LINGER, LAST_WORDS_MS)
        self._socket.bind(engine_address(run_dir))
        self._clients: dict[bytes, _Client] = {}
        self._by_number: dict[int, _Client] = {}
        self._next_number = 1
        self._inbox: list[AddRequest | AbortRequests] = []
        self._last_beat = 0.0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delivers what was sent, for up to a second, and takes the socket away."""
        self._socket.close()
        self._context.term()

    def receive(self, timeout: float) -> list[AddRequest | AbortRequests]:
        """What servers want, with engine-wide request ids. Sleeps until a message comes, for at most `timeout` s."""
        if not self._inbox and not self._socket.poll(int(timeout * 1000)):
            return []
        for _ in range(RECEIVE_AT_ONCE):
            try:
                identity, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            except ValueError:
                continue  # not two frames: not one of our clients
            self._handle(identity, frame)
        received, self._inbox = self._inbox, []
        return received

    def accept(self, request_ids: Iterable[int]) -> None:
        """Tells the servers that the engine has taken these requests."""
        accepted: dict[int, list[int]] = {}
        for request_id in request_ids:
            accepted.setdefault(request_id >> LOCAL_BITS, []).append(request_id & LOCAL_MASK)
        for number, ids in accepted.items():
            client = self._by_number.get(number)
            if client is not None:
                self._send(client, Accepted(ids))

    def reject(self, request_id: int, error: RequestError) -> None:
        """Tells the server why the engine has not taken a request."""
        client = self._by_number.get(request_id >> LOCAL_BITS)
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
            client = self._by_number.get(number)
            if client is not None:
                client.requests.difference_update(part.request_ids[part.finish != Finish.RUNNING].tolist())
                self._send(client, pack_output(part))

    def beat(self, stats: Callable[[], EngineStats]) -> None:
        """To be called each time the loop comes round; sends a heartbeat when one is due and drops silent servers."""
        now = time.monotonic()
        if now - self._last_beat < BEAT_SECONDS:
            return
        self._last_beat = now
        for client in list(self._clients.values()):
            if now - client.heard > SILENCE_SECONDS:
                self._drop(client, f"was silent for {SILENCE_SECONDS:g} s")
        self._broadcast(Heartbeat(stats()))

    def fail(self, reason: str) -> None:
        """The engine's last words."""
        self._broadcast(EngineFailed(reason))

    def _handle(self, identity: bytes, frame: bytes) -> None:
        try:
            message = self._decoder.decode(frame)
        except msgspec.MsgspecError as error:
            log.error("a server process sent a message that is none: %s", error)
            return
        client = self._clients.get(identity)
        if isinstance(message, Hello):
            self._greet(identity, message)
        elif client is None:
            self._dismiss(identity)
        else:
            client.heard = time.monotonic()
            base = client.number << LOCAL_BITS
            if isinstance(message, AddRequest):
                request_id = base | message.request_id
                client.requests.add(request_id)
                self._inbox.append(msgspec.structs.replace(message, request_id=request_id))
            elif isinstance(message, AbortRequests):
                ids = [base | request_id for request_id in message.request_ids]
                client.requests.difference_update(ids)
                self._inbox.append(AbortRequests(ids))

    def _greet(self, identity: bytes, hello: Hello) -> None:
        client = _Client(self._next_number, identity, f"{hello.name} (pid {hello.pid})", time.monotonic())
        self._next_number += 1
        self._clients[identity] = self._by_number[client.number] = client
        self._send(client, self._ready)

    def _dismiss(self, identity: bytes) -> None:
        """Answers one whose requests were ended when it was dropped."""
        reason = "the engine had dropped this server process, which did not answer in time"
        try:
            self._socket.send_multipart((identity, self._encoder.encode(EngineFailed(reason))), zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError):
            log.warning("a dropped server process cannot be told so")

    def _broadcast(self, message: ToServer) -> None:
        for client in list(self._clients.values()):
            self._send(client, message)

    def _send(self, client: _Client, message: ToServer) -> None:
        try:
            self._socket.send_multipart((client.identity, self._encoder.encode(message)), zmq.NOBLOCK)
        except zmq.Again:
            self._drop(client, f"left {QUEUE_MESSAGES} messages unread")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(client, "is gone")

    def _drop(self, client: _Client, why: str) -> None:
        if self._clients.pop(client.identity, None) is not None:
            del self._by_number[client.number]
            log.warning("server process %s %s; its %d requests end", client.name, why, len(client.requests))
            if client.requests:
                self._inbox.append(AbortRequests(sorted(client.requests)))


def request_of(message: AddRequest) -> Request:
    """The engine's request that a message asks for. Raises RequestError when the prompt is no array of int32."""
    if len(message.prompt) % 4:
        raise RequestError("prompt", f"the prompt has {len(message.prompt)} bytes; token ids take 4 each")
    prompt = np.frombuffer(message.prompt, np.int32)
    return Request(message.request_id, prompt, message.sampling, message.cache_salt)
