"""A server process's end of the engine's socket, on its asyncio loop: no thread, and no task for a token.

ZeroMQ's file descriptor tells only that something has changed since the socket was last found empty; so a socket is
read until it is empty at first, after each send and after each wake-up.
"""

import asyncio
import contextlib
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import zmq
from zmq.utils.monitor import parse_monitor_message

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.errors import OarlockError, RequestError
from oarlock_runtime.ipc.address import engine_address
from oarlock_runtime.ipc.messages import (
    AbortRequests,
    Accepted,
    AddRequest,
    EngineFailed,
    EngineReady,
    Heartbeat,
    Hello,
    Ping,
    Rejected,
    ToEngine,
    Tokens,
    ToServer,
)
from oarlock_runtime.ipc.packing import unpack_output
from oarlock_runtime.ipc.sockets import QUEUE_MESSAGES
from oarlock_runtime.ipc.stream import Logprob, TokenStream

PING_SECONDS = 1.0
ACCEPT_SECONDS = 60.0  # the engine answers between two steps
READ_AT_ONCE = 64  # messages handled before other callbacks have their turn


class EngineDead(RequestError):
    """The engine is gone, and this server process is of no more use."""

    def __init__(self, reason: str) -> None:
        super().__init__("", f"the engine has ended: {reason}", status=503, code="engine_dead", kind="server_error")


class EngineClient:
    """Sends requests and delivers their tokens. Made and used on one running event loop."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._address = engine_address(run_dir)
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[EngineReady] = self._loop.create_future()
        self.closed: asyncio.Future[str] = self._loop.create_future()  # resolved with `dead` when the engine is lost
        self.stats = EngineStats()  # the latest heartbeat's
        self.dead = ""  # why the engine is lost; "" while it isn't
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)  # ms, while the engine isn't up yet
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._streams: dict[int, TokenStream] = {}
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._aborts: list[int] = []
        self._next_id = 0
        self._heard = time.monotonic()
        self._pinging: asyncio.TimerHandle | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)

    async def connect(self, timeout: float) -> EngineReady:
        """Waits for the engine to have loaded its model. Raises OarlockError after `timeout` seconds, EngineDead."""
        self._socket.connect(self._address)
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.add_reader(self._monitor.fileno(), self._watch)
        self._loop.call_soon(self._watch)
        self._send(Hello(self._name, os.getpid()))
        await asyncio.wait((self._ready, self.closed), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self.dead:
            raise EngineDead(self.dead)
        if not self._ready.done():
            raise OarlockError(f"the engine was not ready within {timeout:g} s")
        self._ping()
        return self._ready.result()

    def close(self) -> None:
        """Leaves the engine, which ends this client's requests. Idempotent."""
        self._lose("this server process is closing")

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine was last heard of. It grows during a step, and when the engine is stuck."""
        return time.monotonic() - self._heard

    async def add(
        self,
        prompt: list[int] | npt.NDArray[np.int32],
        sampling: SamplingParams,
        cache_salt: str = "",
        name: str = "",
    ) -> TokenStream:
        """Hands a prompt to the engine and waits until it is taken; a `name` is unique among all live requests.

        Raises RequestError as the engine does (with status 429 and retry_after when the queue is full), EngineDead.
        """
        if self.dead:
            raise EngineDead(self.dead)
        request_id = self._next_id
        self._next_id += 1
        stream = TokenStream(request_id, sampling.top_logprobs, sampling.prompt_logprobs, self._abort)
        answer = self._answers[request_id] = self._loop.create_future()
        self._streams[request_id] = stream
        try:
            self._send(AddRequest(request_id, np.asarray(prompt, np.int32).tobytes(), sampling, cache_salt, name))
            await asyncio.wait_for(answer, ACCEPT_SECONDS)
        except BaseException as error:
            stream.abort()
            if isinstance(error, TimeoutError):
                raise RequestError("", "the engine did not answer in time", status=503, kind="server_error") from None
            raise
        finally:
            self._answers.pop(request_id, None)
        return stream

    # ---- sending

    def _send(self, message: ToEngine) -> None:
        try:
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise RequestError(
                "", "the engine does not keep up with new requests", status=429, code="queue_full", retry_after=1
            ) from None
        self._loop.call_soon(self._read)

    def _abort(self, request_id: int) -> None:
        if self._streams.pop(request_id, None) is not None and not self.dead:
            if not self._aborts:
                self._loop.call_soon(self._flush_aborts)
            self._aborts.append(request_id)

    def _flush_aborts(self) -> None:
        """One message for all clients that left in this turn of the loop."""
        if self.dead or not self._aborts:
            return
        try:
            self._send(AbortRequests(self._aborts))
            self._aborts = []
        except RequestError:
            self._loop.call_later(PING_SECONDS, self._flush_aborts)

    def _ping(self) -> None:
        if self.dead:
            return
        with contextlib.suppress(RequestError):  # its queue is full of our messages: it will hear of us
            self._send(Ping())
        self._pinging = self._loop.call_later(PING_SECONDS, self._ping)

    # ---- receiving

    def _read(self) -> None:
        for _ in range(READ_AT_ONCE):
            if self.dead:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            self._handle(self._decoder.decode(frame))
        self._loop.call_soon(self._read)

    def _watch(self) -> None:
        """Looks whether the engine's process has gone. What it sent before is read first."""
        gone = False
        while not self.dead and self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())
            gone = gone or event["event"] == zmq.EVENT_DISCONNECTED
        if gone and self._ready.done():
            while not self.dead and self._socket.poll(0):
                self._read()
            self._lose("its process is gone")

    def _handle(self, message: ToServer) -> None:
        match message:
            case Tokens():
                self._deliver(message)
            case Accepted():
                for request_id in message.request_ids:
                    self._answer(request_id, None)
            case Rejected():
                self._streams.pop(message.request_id, None)
                self._answer(message.request_id, _error(message))
            case Heartbeat():
                self.stats = message.stats
            case EngineReady():
                if not self._ready.done():
                    self._ready.set_result(message)
            case EngineFailed():
                self._lose(message.reason)

    def _answer(self, request_id: int, error: RequestError | None) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _deliver(self, message: Tokens) -> None:
        """Appends everything in the message to its streams, then wakes their readers."""
        output = unpack_output(message)
        ids, streams = output.request_ids.tolist(), self._streams
        for part in output.prompt_logprobs:
            if stream := streams.get(part.request_id):
                stream.pending.prompt_logprobs += _logprobs(part.logprobs, part.top_ids, part.top_logprobs)
                stream.wake()
        if output.logprobs is not None:
            columns = output.logprobs
            found = _logprobs(columns.logprobs, columns.top_ids, columns.top_logprobs)
            for entry, logprob in zip(columns.entries.tolist(), found, strict=True):
                if stream := streams.get(ids[entry]):
                    del logprob.top[stream.top :]
                    stream.pending.logprobs.append(logprob)
        if output.started is not None:
            started = output.started
            for entry, cached, seconds in zip(
                started.entries.tolist(), started.cached_tokens.tolist(), started.queue_seconds.tolist(), strict=True
            ):
                if stream := streams.get(ids[entry]):
                    stream.pending.cached_tokens, stream.pending.queue_seconds = cached, seconds
        for failure in output.failures:
            if stream := streams.get(failure.request_id):
                stream.pending.error = failure.message
        for request_id, token, finish in zip(ids, output.token_ids.tolist(), output.finish.tolist(), strict=True):
            stream = streams.get(request_id)
            if stream is None:
                continue
            if token >= 0:
                stream.pending.token_ids.append(token)
            if finish:
                stream.pending.finish = Finish(finish)
                del streams[request_id]
            stream.wake()

    def _lose(self, reason: str) -> None:
        """The engine is gone: all requests end, and whoever waits is told why."""
        if self.dead:
            return
        self.dead = reason
        if self._pinging is not None:
            self._pinging.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_reader(self._monitor.fileno())
        self.closed.set_result(reason)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EngineDead(reason))
        for stream in self._streams.values():
            stream.pending.finish, stream.pending.error = Finish.ERROR, f"the engine has ended: {reason}"
            stream.wake()
        self._answers, self._streams = {}, {}
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()


def _logprobs(
    logprobs: npt.NDArray[np.float32], top_ids: npt.NDArray[np.int32], top_logprobs: npt.NDArray[np.float32]
) -> list[Logprob]:
    return [
        Logprob(logprob, list(zip(ids, values, strict=True)))
        for logprob, ids, values in zip(logprobs.tolist(), top_ids.tolist(), top_logprobs.tolist(), strict=True)
    ]


def _error(message: Rejected) -> RequestError:
    return RequestError(
        message.field,
        message.message,
        message.status,
        message.code,
        kind=message.kind,
        retry_after=message.retry_after,
    )
