"""Whose round is next, and how many go on at once: one, so that each is short while many ask.

Rounds of one deployment never overlap anyway; those of several would share the same API server, be done no sooner and
each take longer. Deployments that had a round before come before new ones: a burst of new ones doesn't hold up a group
that lost a member, and the first of many is ready early. `_NEW_EVERY`th turns are for new ones all the same. A round
that takes longer than `SLOW_SECONDS` waits for something (a webhook, a dead node) and no longer keeps others waiting.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

SLOW_SECONDS = 1.0
_NEW_EVERY = 5


class Turns:
    """One turn at a time. Used from one event loop."""

    def __init__(self) -> None:
        self._free = True
        self._known: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()
        self._since_new = 0

    @contextlib.asynccontextmanager
    async def one(self, known: bool) -> AsyncIterator[None]:
        """A turn, for a deployment that had one before (`known`) or for a new one."""
        await self._take(self._known if known else self._new)
        loop, mine = asyncio.get_running_loop(), True

        def give_back() -> None:
            nonlocal mine
            if mine:
                mine = False
                self._next()

        timer = loop.call_later(SLOW_SECONDS, give_back)
        try:
            yield
        finally:
            timer.cancel()
            loop.call_soon(give_back)  # who wants to go on at once is in the queue by then

    async def _take(self, queue: deque[asyncio.Future[None]]) -> None:
        if self._free:
            self._free = False
            return
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._next()  # the turn came together with the end
            raise

    def _next(self) -> None:
        self._since_new += 1
        queues = (self._known, self._new) if self._since_new < _NEW_EVERY else (self._new, self._known)
        for queue in queues:
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(None)
                    if queue is self._new:
                        self._since_new = 0
                    return
        self._free = True
