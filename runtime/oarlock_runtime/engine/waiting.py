"""Requests that have no seat yet: a bounded queue, and how fast it drains. Engine process."""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from oarlock_runtime.engine.request import QueueFull, Request

RATE_WINDOW = 30.0  # seconds of admissions that the drain rate is taken over
LONGEST_RETRY = 60  # seconds


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue, and what has been found out about it while it waited."""

    request: Request
    arrival: int  # number of the request, in order of arrival
    since: float  # seconds
    chain: list[bytes] | None = None  # digests of the prompt's full blocks, once it was considered
    awaited: bytes | None = None  # digest of a block that it will share when another sequence has computed it


class WaitingQueue:
    """First in, first out; aborts take from the middle. Holds `limit` requests beyond the seats that are free."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[int, Waiting] = OrderedDict()
        self._admitted: deque[float] = deque(maxlen=4096)  # times of admissions
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._entries

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._entries.values())

    def add(self, request: Request, now: float, vacant: int) -> None:
        """Raises QueueFull, which says when to come again."""
        if len(self._entries) >= self._limit + vacant:
            raise QueueFull(self._limit, self.retry_after(now))
        self._entries[request.request_id] = Waiting(request, self._arrivals, now)
        self._arrivals += 1

    def remove(self, request_id: int) -> bool:
        """Takes out an aborted request; False if it is not here."""
        return self._entries.pop(request_id, None) is not None

    def admit(self, entry: Waiting, now: float) -> None:
        del self._entries[entry.request.request_id]
        self._admitted.append(now)

    def drain_rate(self, now: float) -> float:
        """Requests admitted per second, lately."""
        while self._admitted and self._admitted[0] < now - RATE_WINDOW:
            self._admitted.popleft()
        if not self._admitted:
            return 0.0
        return len(self._admitted) / max(now - self._admitted[0], 1.0)

    def retry_after(self, now: float) -> int:
        """Seconds in which the present queue should be gone."""
        rate = self.drain_rate(now)
        return min(LONGEST_RETRY, max(1, math.ceil(len(self._entries) / rate))) if rate else LONGEST_RETRY
