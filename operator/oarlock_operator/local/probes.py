"""The probes of a container, asked as a kubelet would: startup first, then readiness and liveness side by side."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

# A kubelet begins with whole seconds; on this machine somebody is waiting at the terminal.
_STARTUP_PERIOD = 0.1


class Probes:
    """`tell` is called whenever readiness changes."""

    def __init__(self, container: Mapping[str, Any], ip: str, tell: Callable[[bool], None]) -> None:
        self._container = container
        self._ip = ip
        self._tell = tell
        self._ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    async def watch(self) -> str:
        """Returns when the container has to be ended, with the reason."""
        startup, live = self._container["startupProbe"], self._container["livenessProbe"]
        async with aiohttp.ClientSession() as session:
            limit = startup["failureThreshold"] * startup["periodSeconds"]
            try:
                async with asyncio.timeout(limit):
                    while not await self._answers(session, startup):
                        await asyncio.sleep(_STARTUP_PERIOD)
            except TimeoutError:
                return f"not ready after {limit} s (probes.startupSeconds)"
            self._tell(True)
            readiness = asyncio.create_task(self._readiness(session))
            try:
                failures = 0
                while failures < live["failureThreshold"]:
                    await asyncio.sleep(live["periodSeconds"])
                    failures = 0 if await self._answers(session, live) else failures + 1
            finally:
                readiness.cancel()
        return f"{live['httpGet']['path']} failed {failures} times in a row"

    async def _readiness(self, session: aiohttp.ClientSession) -> None:
        probe = self._container["readinessProbe"]
        failures = 0
        while True:
            await asyncio.sleep(probe["periodSeconds"])
            good = await self._answers(session, probe)
            failures = 0 if good else failures + 1
            if good or failures == probe["failureThreshold"]:
                self._tell(good)

    async def _answers(self, session: aiohttp.ClientSession, probe: Mapping[str, Any]) -> bool:
        get = probe["httpGet"]
        limit = aiohttp.ClientTimeout(total=probe["timeoutSeconds"])
        try:
            url = f"http://{self._ip}:{self._ports[get['port']]}{get['path']}"
            async with session.get(url, timeout=limit) as answer:
                return answer.status < 400
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
