"""How requests arrive: closed load (so many at once, the next when one ends) or Poisson arrivals at a rate."""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from oarlock_runtime.cli.bench.client import Trace

Send = Callable[[bytes], Awaitable[Trace]]


@dataclass(frozen=True)
class Load:
    """`concurrency` requests at once; with a rate above 0, so many arrivals a second without a bound on them."""

    concurrency: int = 1
    rate: float = 0.0

    def describe(self) -> str:
        return f"{self.rate:g}/s" if self.rate else f"{self.concurrency}"


def loads_of(flags: argparse.Namespace) -> list[tuple[Load, int]]:
    """Each load to offer, with the number of its requests."""
    if flags.rate:
        return [(Load(rate=flags.rate), flags.requests or 64)]
    return [(Load(streams), flags.requests or max(4, 2 * streams)) for streams in flags.concurrency]


def arrivals_of(load: Load, count: int, seed: str) -> list[float]:
    """Poisson arrivals in seconds from the start; none for closed load."""
    if not load.rate:
        return []
    dice = random.Random(f"arrivals {seed}")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += dice.expovariate(load.rate)
    return times


async def offer(load: Load, bodies: Sequence[bytes], send: Send, seed: str) -> tuple[list[Trace], float]:
    """Sends all bodies as the load says; their traces, and the seconds from the first byte to the last."""
    start = time.perf_counter()
    arrivals = arrivals_of(load, len(bodies), seed)
    traces = await (timed(arrivals, bodies, send) if load.rate else closed(load.concurrency, bodies, send))
    return traces, time.perf_counter() - start


async def closed(concurrency: int, bodies: Sequence[bytes], send: Send) -> list[Trace]:
    waiting = iter(bodies)
    traces: list[Trace] = []

    async def client() -> None:
        for body in waiting:
            traces.append(await send(body))

    await asyncio.gather(*(client() for _ in range(min(concurrency, len(bodies)))))
    return traces


async def timed(arrivals: Sequence[float], bodies: Sequence[bytes], send: Send) -> list[Trace]:
    start = time.perf_counter()

    async def later(due: float, body: bytes) -> Trace:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        return await send(body)

    return list(await asyncio.gather(*map(later, arrivals, bodies)))
