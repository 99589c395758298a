"""One request's tokens on their way to its client. Server process; filled by EngineClient, read by one coroutine."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from oarlock_runtime.engine.request import Finish


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's log-probability, and as many alternatives (token id, log-probability) as were asked for, best first."""

    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)
class Chunk:
    """What has come since the last chunk; a slow reader gets fewer and longer ones."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)  # one a token, if asked for
    prompt_logprobs: list[Logprob] = field(default_factory=list)  # of the prompt's next tokens, from its second
    cached_tokens: int = -1  # of the prompt; at least 0 in the chunk with the first token
    queue_seconds: float = 0.0  # in the same chunk
    finish: Finish = Finish.RUNNING  # otherwise the last chunk; STOP: the last token is the one it stopped at
    error: str = ""  # why, with Finish.ERROR


class TokenStream:
    """Chunks of one accepted request. Whoever stops reading before the last one calls abort()."""

    def __init__(self, request_id: int, top: int, prompt_top: int, abort: Callable[[int], None]) -> None:
        self.request_id = request_id
        self.top = top  # alternatives wanted with a token
        self.prompt_top = prompt_top
        self.pending = Chunk()  # EngineClient appends to it, then calls wake()
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._fresh = self._ended = False

    async def next(self) -> Chunk | None:
        """All that has come since the last call; waits if that is nothing, and is None after the last chunk."""
        while not self._fresh:
            if self._ended:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        chunk, self.pending = self.pending, Chunk()
        self._fresh = False
        return chunk

    def abort(self) -> None:
        """The client is gone: the request leaves the batch before the next step. Harmless when it has ended."""
        if not self._ended:
            self._ended = True
            self._abort(self.request_id)
            self.pending.finish = Finish.ABORT
            self.wake()

    def wake(self) -> None:
        """There is something in `pending`."""
        self._fresh = True
        self._ended = self._ended or self.pending.finish != Finish.RUNNING
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
