"""The operator's own HTTP server: /livez, /readyz and /metrics."""

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from oarlock_operator.controller.metrics import Metrics


class Health:
    """`trouble` tells why the process should be restarted, if so; `ready` whether it has reached the API server."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._runner: web.AppRunner | None = None
        self.trouble: Callable[[], str | None] = lambda: None
        self.ready = False
        self.heard: Callable[[], float] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; port 0 takes a free one. Returns the port. OSError when it is taken."""
        app = web.Application()
        app.add_routes(
            [web.get("/livez", self._live), web.get("/readyz", self._ready), web.get("/metrics", self._page)]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, _: web.Request) -> web.Response:
        trouble = self.trouble()
        return web.Response(text=trouble or "ok", status=500 if trouble else 200)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok" if self.ready else "starting", status=200 if self.ready else 503)

    async def _page(self, _: web.Request) -> web.Response:
        if self.heard is not None:
            self._metrics.last_event.set(time.monotonic() - self.heard())
        return web.Response(body=generate_latest(self._metrics.registry), content_type="text/plain")
