"""A server process's end of the engine's socket, on its asyncio loop: no thread, and no task for a token."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.output import StepOutput
from oarlock_runtime.engine.request import Finish
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.errors import OarlockError, RequestError
from oarlock_runtime.ipc.address import engine_address
from oarlock_runtime.ipc.framing import FrameReader, framed
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
from oarlock_runtime.ipc.stream import Logprob, TokenStream

PING_SECONDS = 1.0
ACCEPT_SECONDS = 60.0  # the engine answers between two steps
RETRY_SECONDS = 0.02  # while the engine isn't up yet
QUEUE_BYTES = 64 << 20  # of requests that the engine has not read


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
        self._transport: asyncio.WriteTransport | None = None
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
        try:
            async with asyncio.timeout(timeout):
                await self._reach()
                await asyncio.wait((self._ready, self.closed), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise OarlockError(f"the engine was not ready within {timeout:g} s") from None
        if self.dead:
            raise EngineDead(self.dead)
        self._ping()
        return self._ready.result()

    async def _reach(self) -> None:
        """Connects, which is possible once the engine has bound its socket, and says hello."""
        while not self.dead:
            try:
                self._transport, _ = await self._loop.create_unix_connection(
                    lambda: _Connection(self._read, lambda: self._lose("its process is gone")), self._address
                )
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._send(Hello(self._name, os.getpid()))
                return

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
        transport = self._transport
        if transport is None:
            raise EngineDead(self.dead or "it was never reached")
        if transport.get_write_buffer_size() > QUEUE_BYTES:
            raise RequestError(
                "", "the engine does not keep up with new requests", status=429, code="queue_full", retry_after=1
            )
        transport.write(framed(self._encoder.encode(message)))

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

    def _read(self, frame: bytes) -> None:
        if not self.dead:
            self._heard = time.monotonic()
            self._handle(self._decoder.decode(frame))

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
        streams = self._streams
        ids = memoryview(message.request_ids).cast("q").tolist()
        if message.logprobs or message.starts or message.prompt_scores or message.failures:
            self._deliver_rarer(unpack_output(message), ids)
        tokens = memoryview(message.token_ids).cast("i")
        for request_id, token, finish in zip(ids, tokens, message.finish, strict=True):
            stream = streams.get(request_id)
            if stream is None:
                continue
            if token >= 0:
                stream.pending.token_ids.append(token)
            if finish:
                stream.pending.finish = Finish(finish)
                del streams[request_id]
            stream.wake()

    def _deliver_rarer(self, output: StepOutput, ids: list[int]) -> None:
        """What most steps have nothing of: scores, beginnings, failures. `ids`: the requests of its entries."""
        streams = self._streams
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

    def _lose(self, reason: str) -> None:
        """The engine is gone: all requests end, and whoever waits is told why."""
        if self.dead:
            return
        self.dead = reason
        if self._pinging is not None:
            self._pinging.cancel()
        self.closed.set_result(reason)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EngineDead(reason))
        for stream in self._streams.values():
            stream.pending.finish, stream.pending.error = Finish.ERROR, f"the engine has ended: {reason}"
            stream.wake()
        self._answers, self._streams = {}, {}
        if self._transport is not None:
            self._transport.close()


class _Connection(asyncio.Protocol):
    """Gives `read` each message, and calls `lost` once no more will come."""

    def __init__(self, read: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._frames = FrameReader()
        self._read = read
        self._lost = lost

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._read(frame)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()


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
