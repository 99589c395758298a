"""The metrics page: the server processes are asked for their share of it. Runs in the supervisor."""

import asyncio
import contextlib

from oarlock_runtime.server.child import Child
from oarlock_runtime.server.metrics import Family, engine_families, merge, page
from oarlock_runtime.server.paddle.series import paddle_families, renamed
from oarlock_runtime.settings import Settings

_SECONDS = 1.0  # for all servers to answer; the page goes without those that don't


class Scrapes:
    """The calls of /metrics that wait for the servers' answers."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Scrape] = {}
        self._last = 0

    async def page(
        self, servers: list[Child], engines: list[Child], own: list[Family], settings: Settings
    ) -> tuple[int, str, bytes]:
        """The page, from `servers` that can answer, `engines` and what the supervisor counts itself."""
        families = await self.families(servers)
        for child in engines:
            if child.stats:
                families.append(engine_families(child.stats, child.facts))
                families.append(paddle_families(child.stats, child.facts, settings))
        merged = merge([*families, own])
        return 200, "text/plain; version=0.0.4; charset=utf-8", page(merged + renamed(merged)).encode()

    async def families(self, servers: list[Child]) -> list[list[Family]]:
        """What each of `servers` counts."""
        self._last += 1
        number = self._last
        scrape = self._waiting[number] = _Scrape(len(servers))
        for child in servers:
            child.control.send("scrape", number=number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS):
                await scrape.complete.wait()
        del self._waiting[number]
        return scrape.parts

    def take(self, number: int, families: list[Family]) -> None:
        """A server's answer, which may come too late."""
        scrape = self._waiting.get(number)
        if scrape is not None:
            scrape.add(families)


class _Scrape:
    def __init__(self, servers: int) -> None:
        self.parts: list[list[Family]] = []
        self.complete = asyncio.Event()
        self._servers = servers
        if not servers:
            self.complete.set()

    def add(self, families: list[Family]) -> None:
        self.parts.append(families)
        if len(self.parts) == self._servers:
            self.complete.set()
