"""The API calls that a server process is answering: their requests in the engine, and their time limits.

A call has one request in the engine for each of its choices. One timer looks after all calls, so that neither a token
nor a write costs one; ending a call, for whatever reason, aborts what of it still runs.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.client import EngineClient
from oarlock_runtime.ipc.stream import Chunk, TokenStream

SWEEP_SECONDS = 0.25
SLOW_READER = "slow reader"  # the message of the cancellation that drops a client


class Call:
    """One API call. Read it with `take` until all its choices have ended."""

    __slots__ = ("_chunks", "_error", "_pumps", "_starting", "_streams", "_waiter", "deadline", "sending_since", "task")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline  # by time.monotonic()
        self.sending_since = 0.0  # since when a write waits for the client; 0 = none does
        self.task = asyncio.current_task()
        self._streams: list[TokenStream] = []
        self._starting: asyncio.Future[list[TokenStream | BaseException]] | None = None
        self._error: Exception | None = None
        # With several choices one task a choice gathers chunks here.
        self._pumps: list[asyncio.Task[None]] = []
        self._chunks: list[tuple[int, Chunk]] = []
        self._waiter: asyncio.Future[None] | None = None

    async def start(
        self,
        client: EngineClient,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        cache_salt: str = "",
        name: str = "",
    ) -> None:
        """Hands over a request for each element of `sampling`; consecutive ones share a prompt.

        `name` is of a call with one choice, and unique among all live calls that have one.

        Raises what EngineClient.add raises, or the error that the call is failed with; then none of them runs.
        """
        each = len(sampling) // len(prompts)
        added: list[TokenStream | BaseException]
        if self._error is not None:
            raise self._error
        # The engine answers between two steps; `fail` need not wait for that.
        self._starting = asyncio.gather(
            *(
                client.add(list(prompts[choice // each]), params, cache_salt, name)
                for choice, params in enumerate(sampling)
            ),
            return_exceptions=True,
        )
        try:
            added = await self._starting
        except asyncio.CancelledError:
            self._check()
            raise
        self._streams = [stream for stream in added if isinstance(stream, TokenStream)]
        for error in added:
            if isinstance(error, BaseException):
                self.end()
                raise error
        self._check()
        if len(sampling) > 1:
            self._pumps = [asyncio.create_task(self._pump(choice)) for choice in range(len(sampling))]

    async def _pump(self, choice: int) -> None:
        while (chunk := await self._streams[choice].next()) is not None:
            self._chunks.append((choice, chunk))
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check(self) -> None:
        if self._error is not None:
            self.end()
            raise self._error

    async def take(self) -> list[tuple[int, Chunk]]:
        """(choice, chunk) of all that has come, at least one. Raises the error that the call was failed with."""
        if len(self._streams) == 1:
            chunk = await self._streams[0].next()
            if self._error is not None:
                self._check()
            return [] if chunk is None else [(0, chunk)]
        while not self._chunks and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._check()
        chunks, self._chunks = self._chunks, []
        return chunks

    def waiting_tokens(self) -> int:
        """Tokens that have come and were not taken."""
        pending = sum(len(stream.pending.token_ids) for stream in self._streams)
        return pending + sum(len(chunk.token_ids) for _, chunk in self._chunks)

    def fail(self, error: Exception) -> None:
        """Ends the call; its reader gets `error`."""
        if self._error is None:
            self._error = error
            if self._starting is not None:
                self._starting.cancel()
            self.end()
            self._wake()

    def failed_with(self, error: Exception) -> bool:
        """Whether `error` is what the call was failed with."""
        return error is self._error

    def end(self, choice: int | None = None) -> None:
        """Nobody wants more of this call (or of one of its choices). Harmless when it has ended."""
        for index, stream in enumerate(self._streams):
            if choice is None or index == choice:
                stream.abort()
        if choice is None:
            for pump in self._pumps:
                pump.cancel()


class Calls:
    """The open calls of this process."""

    def __init__(self, *, slow_reader_seconds: float, slow_reader_tokens: int) -> None:
        self._slow_reader_seconds = slow_reader_seconds
        self._slow_reader_tokens = slow_reader_tokens
        self._open: set[Call] = set()
        self.idle = asyncio.Event()  # set while no call is open
        self.idle.set()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, deadline: float) -> Call:
        call = Call(deadline)
        self._open.add(call)
        self.idle.clear()
        return call

    def close(self, call: Call) -> None:
        call.end()
        self._open.discard(call)
        if not self._open:
            self.idle.set()

    def fail_all(self, error: Callable[[], RequestError]) -> None:
        """Ends every call with an error of its own."""
        for call in list(self._open):
            call.fail(error())

    async def watch(self) -> None:
        """Enforces time limits, forever: of whole calls, and of writes that wait for a client."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for call in list(self._open):
                late = now > call.deadline
                if late:
                    call.fail(
                        RequestError("", "the request took too long", 504, "request_timeout", kind="timeout_error")
                    )
                if not call.sending_since:
                    continue
                slow = now - call.sending_since > self._slow_reader_seconds
                if (late or slow or call.waiting_tokens() > self._slow_reader_tokens) and call.task is not None:
                    call.task.cancel(SLOW_READER)
