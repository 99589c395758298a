"""How requests arrive: closed load (so many at once, the next when one ends) or Poisson arrivals at a rate."""

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


async def offer(load: Load, bodies: Sequence[bytes], send: Send, seed: str) -> tuple[list[Trace], float]:
    """Sends all bodies as the load says; their traces, and the seconds from the first byte to the last."""
    start = time.perf_counter()
    traces = await (poisson(load.rate, bodies, send, seed) if load.rate else closed(load.concurrency, bodies, send))
    return traces, time.perf_counter() - start


async def closed(concurrency: int, bodies: Sequence[bytes], send: Send) -> list[Trace]:
    waiting = iter(bodies)
    traces: list[Trace] = []

    async def client() -> None:
        for body in waiting:
            traces.append(await send(body))

    await asyncio.gather(*(client() for _ in range(min(concurrency, len(bodies)))))
    return traces


async def poisson(rate: float, bodies: Sequence[bytes], send: Send, seed: str) -> list[Trace]:
    dice = random.Random(f"arrivals {seed}")
    due = time.perf_counter()

    async def later(delay: float, body: bytes) -> Trace:
        await asyncio.sleep(delay)
        return await send(body)

    tasks = []
    for body in bodies:
        tasks.append(asyncio.create_task(later(max(0.0, due - time.perf_counter()), body)))
        due += dice.expovariate(rate)
    return list(await asyncio.gather(*tasks))
