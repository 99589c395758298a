"""One private request from its task to its last frame, for whatever transport it came by. Runs in the server processes.

    with Conversation(service, http=False) as conversation:
        async for frame in conversation.answer(lambda: task_of_payload(payload), len(payload)):
            ...

`answer` never raises for what is wrong with a request: it ends with an error object instead (told by its `error_code`).
Leaving the `with` aborts what still runs. A transport that notices its client's leaving calls `conversation.call.fail`
with an exception of its own, which `answer` lets through, or cancels the task that iterates.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from oarlock_runtime.engine.request import NAME_IN_USE, Finish
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.stream import Chunk
from oarlock_runtime.server.paddle.failure import BACKEND, HANDLER, PaddleError, duplicate, queue_full, translated
from oarlock_runtime.server.paddle.frames import Clock, Frame, Frames
from oarlock_runtime.server.paddle.prepare import TIMEOUT, Prepared, checked, prepare
from oarlock_runtime.server.paddle.task import Task, name_of
from oarlock_runtime.server.service import Service

_log = logging.getLogger("oarlock.paddle")
LONG_BODY = 8192  # bytes; tokenizing more would hold up the other clients, so it happens in a thread


class Conversation:
    """One request. `http` chooses the shape of frames, and gives a request without req_id one.

    `arrived`, by time.monotonic(), is now unless given. `streams` says what the client asked for, `frames` has the
    answer as a whole once it is complete, and `outcome` is for the metrics: 200, or error_ and the dialect's code.
    """

    def __init__(self, service: Service, *, http: bool, arrived: float = 0.0) -> None:
        self.http = http
        self.streams = False
        self.frames: Frames | None = None
        self.outcome = "cancelled"
        self.arrived = arrived or time.monotonic()
        self._failed = False
        self._service = service
        self._clock = Clock()
        self._name: str | int | None = None  # the req_id, once it is known
        self._live = False  # whether it stands in service.live
        self._gap = 0.0  # upstream's timeout: seconds between frames
        self.call = service.calls.open(self.arrived + service.settings.request_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether the frame given last is the last one."""
        return self._failed or (self.frames is not None and self.frames.complete)

    def close(self) -> None:
        """Aborts what still runs. Idempotent."""
        self._service.calls.close(self.call)
        if self._live:
            self._live = False
            self._service.live.discard(str(self._name))

    async def answer(self, read: Callable[[], Task], size: int = 0) -> AsyncIterator[Frame]:
        """The frames of the task that `read` gives (it may raise PaddleError), an error object last when it fails.

        `size`: of the payload, in bytes. A request that isn't streamed gives its frames all the same; over HTTP its
        answer is `whole`.
        """
        try:
            async for frame in self._run(await self._prepare(read, size)):
                yield frame
            self.outcome = "200"
            return
        except PaddleError as error:
            told = error
        except RequestError as error:
            told = self._translated(error)
        except Exception as error:
            if self.call.failed_with(error):
                raise
            _log.exception("a private request failed inside the server")
            told = PaddleError(HANDLER, "the server failed on this request")
        self._failed = True
        self.outcome = f"error_{told.code}"
        yield told.frame(self._name)

    def _translated(self, error: RequestError) -> PaddleError:
        settings = self._service.settings
        waiting = self._service.client.stats.waiting
        if error.code == NAME_IN_USE:
            return duplicate(self._name)
        return translated(error, waiting, settings.queue_limit, strict=settings.strict_paddle)

    # ---- before the engine

    async def _prepare(self, read: Callable[[], Task], size: int) -> Prepared:
        service = self._service
        service.check_open()
        rules = service.rules
        try:
            task = read()
            self._name = name_of(task)
            self.streams = task.get("stream") is True
            if self.http:
                self._name = task.setdefault("req_id", str(uuid.uuid4()))
            checked(task, rules)
            self._take_name(task["req_id"])
            self._set_timeout(task)
            if size < LONG_BODY:
                prepared = prepare(task, service.tokenizer, rules)
            else:
                loop = asyncio.get_running_loop()
                prepared = await loop.run_in_executor(None, prepare, task, service.tokenizer, rules)
            prepared.sampling.validate(rules.vocab)
        except PaddleError as error:
            # PaddleNLP looks at its queue first; ours is another process's, which says so only when asked to take it.
            waiting, limit = service.client.stats.waiting, service.settings.queue_limit
            raise queue_full(waiting, limit) if waiting >= limit else error from None
        service.check_open()
        return prepared

    def _take_name(self, name: str | int) -> None:
        if str(name) in self._service.live:
            raise duplicate(name)
        self._service.live.add(str(name))
        self._live = True

    def _set_timeout(self, task: Task) -> None:
        """The request's own time limit, if it is the shorter one; strict: between two frames, as upstream."""
        if not self.http and "timeout" not in task:
            return
        seconds = float(task.get("timeout", TIMEOUT))
        if self._service.settings.strict_paddle:
            self._gap = seconds
        else:
            self.call.deadline = min(self.call.deadline, self.arrived + seconds)

    # ---- the engine's answer

    async def _run(self, prepared: Prepared) -> AsyncIterator[Frame]:
        service, call = self._service, self.call
        strict = service.settings.strict_paddle
        self._clock.prepared()
        frames = self.frames = Frames(prepared, service.tokenizer, self._clock, http=self.http, strict=strict)
        end = call.deadline
        self._allow(end)
        await call.start(service.client, [prepared.prompt], [prepared.sampling], name=str(prepared.req_id))
        first = last = 0.0
        while not frames.complete:
            for _, chunk in await call.take():
                _check_finish(chunk)
                if frames.complete:
                    break
                frame = frames.push(chunk)
                if frames.cut:
                    call.end()
                last = time.monotonic()
                if not first and frames.tokens:
                    first = last
                    service.metrics.first_token(first - self.arrived)
                self._allow(end)
                if frame is not None:
                    yield frame
        service.metrics.token_time(first, last, frames.tokens)
        service.metrics.finished(
            [frames.reason], frames.tokens, time.monotonic() - self.arrived, self._clock.queue_seconds
        )

    def _allow(self, end: float) -> None:
        if self._gap:
            self.call.deadline = min(end, time.monotonic() + self._gap)


def _check_finish(chunk: Chunk) -> None:
    if chunk.finish == Finish.ABORT:
        raise RequestError("", "the server is stopping", 503, "server_stopping", kind="server_error")
    if chunk.finish == Finish.ERROR:
        raise PaddleError(BACKEND, f"status is StatusCode.INTERNAL, msg is {chunk.error or 'the engine failed'}")
