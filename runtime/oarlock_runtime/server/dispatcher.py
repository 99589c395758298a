"""Who gets which token: hands the engine's messages to the calls that wait for them, and aborts what nobody waits for.

Runs in each server process, on its event loop. One message of the engine carries the tokens of all requests of a step;
a call that is not waiting (its client reads slowly) just collects. One timer looks after all calls' time limits.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.messages import AbortRequests, AddRequest, Logprobs, PromptScores, Rejected, Tokens
from oarlock_runtime.server.http.choice import Alternatives

SWEEP_SECONDS = 0.25
Event = tuple[int, int, int, Alternatives | None]  # choice, token (-1: none), Finish, scores


class Call:
    """One HTTP request as the dispatcher sees it; `open` counts the choices that still run in the engine."""

    __slots__ = (
        "_waiter",
        "cached_tokens",
        "deadline",
        "error",
        "events",
        "ids",
        "open",
        "patient",
        "prompt_scores",
        "queue_seconds",
        "sending_since",
        "task",
    )

    def __init__(self, deadline: float, patient: bool) -> None:
        self.deadline = deadline  # by time.monotonic()
        self.patient = patient  # wants to be woken only when all its choices have ended
        self.ids: dict[int, int] = {}  # running request id to choice
        self.open = 0
        self.events: list[Event] = []
        self.prompt_scores: list[tuple[int, PromptScores]] = []
        self.cached_tokens: dict[int, int] = {}  # by choice
        self.queue_seconds: float | None = None
        self.error: Exception | None = None
        self.sending_since = 0.0  # since when a write waits for the client; 0 = none does
        self.task: asyncio.Task[object] | None = asyncio.current_task()
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the call with `error`, unless it has ended with another."""
        if self.error is None:
            self.error = error
            self.wake()

    async def take(self) -> list[Event]:
        """The events since the last call, at least one. Raises the error that the call ended with."""
        while self.error is None and (not self.events or (self.patient and self.open)):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is not None:
            raise self.error
        events, self.events = self.events, []
        return events


class Dispatcher:
    """The calls of one server process. `send` takes AddRequest and AbortRequests for the engine."""

    def __init__(
        self,
        send: Callable[[AddRequest | AbortRequests], None],
        *,
        slow_reader_seconds: float,
        slow_reader_tokens: int,
    ) -> None:
        self._send = send
        self._slow_reader_seconds = slow_reader_seconds
        self._slow_reader_tokens = slow_reader_tokens
        self._next_id = 1
        self._running: dict[int, Call] = {}
        self.calls: set[Call] = set()

    def submit(self, call: Call, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]) -> None:
        """Sends one request for each element of `sampling`; consecutive ones share a prompt. RequestError if full."""
        self.calls.add(call)
        each = len(sampling) // len(prompts)
        packed = [np.asarray(prompt, np.int32).tobytes() for prompt in prompts]
        for choice, params in enumerate(sampling):
            request_id = self._next_id
            self._send(AddRequest(request_id, packed[choice // each], params))
            self._next_id += 1
            call.ids[request_id] = choice
            call.open += 1
            self._running[request_id] = call

    def end(self, call: Call, choice: int | None = None) -> None:
        """Nobody wants more of this call (or of one of its choices); what still runs is aborted."""
        gone = [request_id for request_id, index in call.ids.items() if choice is None or index == choice]
        for request_id in gone:
            del call.ids[request_id], self._running[request_id]
            call.open -= 1
        if gone:
            self._send(AbortRequests(gone))
        if choice is None:
            self.calls.discard(call)
        elif not call.open:
            call.wake()

    def on_tokens(self, message: Tokens) -> None:
        """Hands out the tokens of one step."""
        ids = np.frombuffer(message.request_ids, np.int64).tolist()
        tokens = np.frombuffer(message.token_ids, np.int32).tolist()
        finish = message.finish
        scores = _scores(message.logprobs) if message.logprobs is not None else {}
        failures = dict(message.failures)
        for prompt in message.prompt_scores:
            call = self._running.get(prompt.request_id)
            if call is not None:
                call.prompt_scores.append((call.ids[prompt.request_id], prompt))
        if message.starts is not None:
            entries = np.frombuffer(message.starts.entries, np.int32).tolist()
            cached = np.frombuffer(message.starts.cached_tokens, np.int32).tolist()
            queued = np.frombuffer(message.starts.queue_seconds, np.float32).tolist()
            for entry, count, seconds in zip(entries, cached, queued, strict=True):
                call = self._running.get(ids[entry])
                if call is not None:
                    call.cached_tokens[call.ids[ids[entry]]] = count
                    call.queue_seconds = max(call.queue_seconds or 0.0, seconds)
        running = self._running
        for entry, request_id in enumerate(ids):
            call = running.get(request_id)
            if call is None:
                continue  # aborted; the engine had already computed this token
            ended = finish[entry]
            if ended:
                del running[request_id]
                choice = call.ids.pop(request_id)
                call.open -= 1
                if ended >= Finish.ABORT:
                    call.fail(_ended_badly(ended, failures.get(request_id)))
                    continue
            else:
                choice = call.ids[request_id]
            call.events.append((choice, tokens[entry], ended, scores.get(entry)))
            if not call.patient or not call.open:
                call.wake()

    def on_rejected(self, message: Rejected) -> None:
        call = self._running.pop(message.request_id, None)
        if call is not None:
            del call.ids[message.request_id]
            call.open -= 1
            call.fail(
                RequestError(
                    message.field,
                    message.message,
                    message.status,
                    message.code,
                    kind=message.kind,
                    retry_after=message.retry_after,
                )
            )

    def fail_all(self, error: RequestError) -> None:
        for call in self.calls:
            call.fail(copy(error))

    async def watch(self) -> None:
        """Enforces time limits, forever: of whole calls, and of writes that wait for a client."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for call in list(self.calls):
                if now > call.deadline:
                    call.fail(
                        RequestError("", "the request took too long", 504, "request_timeout", kind="timeout_error")
                    )
                blocked = call.sending_since and now - call.sending_since
                late = now > call.deadline or blocked > self._slow_reader_seconds
                if blocked and (late or len(call.events) > self._slow_reader_tokens) and call.task is not None:
                    call.task.cancel()


def _ended_badly(finish: int, reason: str | None) -> RequestError:
    if finish == Finish.ABORT:
        return RequestError("", "the server is stopping", 503, "server_stopping", kind="server_error")
    return RequestError("", reason or "the engine failed on this request", 500, "engine_error", kind="server_error")


def _scores(logprobs: Logprobs) -> dict[int, Alternatives]:
    """The scores of a message, by entry."""
    entries = np.frombuffer(logprobs.entries, np.int32).tolist()
    own = np.frombuffer(logprobs.logprobs, np.float32).tolist()
    top_ids = np.frombuffer(logprobs.top_ids, np.int32).reshape(len(entries), logprobs.width).tolist()
    top = np.frombuffer(logprobs.top_logprobs, np.float32).reshape(len(entries), logprobs.width).tolist()
    return {entry: (own[row], top_ids[row], top[row]) for row, entry in enumerate(entries)}
