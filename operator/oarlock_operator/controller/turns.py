"""Whose round is next, and how many go on at once: one, so that each is short while many ask.

Rounds of one deployment never overlap anyway; those of several would share the same API server, be done no sooner and
each take longer. A round that was broken off is continued before others are begun: that way the first of many is done
early, not all of them late. A round that takes longer than `SLOW_SECONDS` waits for something (a webhook, a dead node)
and no longer keeps others waiting.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

SLOW_SECONDS = 1.0


class Turns:
    """One turn at a time. Used from one event loop."""

    def __init__(self) -> None:
        self._free = True
        self._begun: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def one(self, begun: bool) -> AsyncIterator[None]:
        """A turn, for a round that goes on with what another has begun or for a new one."""
        await self._take(self._begun if begun else self._new)
        mine = True

        def give_back() -> None:
            nonlocal mine
            if mine:
                mine = False
                self._next()

        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

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
        for queue in (self._begun, self._new):
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(None)
                    return
        self._free = True
