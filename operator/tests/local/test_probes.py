"""A container's probes: startup first, then readiness and liveness, each with its threshold."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from oarlock_operator.local.probes import Probes


class Server:
    """Answers each path with the status that `answers` has for it."""

    def __init__(self) -> None:
        self.answers = {"/ready": 503, "/live": 200}
        self.asked: list[str] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        self.asked.append(path)
        writer.write(f"HTTP/1.1 {self.answers[path]} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


def container(port: int, startup: int) -> dict[str, Any]:
    def probe(path: str, failures: int, period: float = 0.02) -> dict[str, Any]:
        get = {"path": path, "port": "health"}
        return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}

    return {
        "ports": [{"name": "health", "containerPort": port}],
        "startupProbe": probe("/ready", startup, 0.1),
        "readinessProbe": probe("/ready", 2),
        "livenessProbe": probe("/live", 3),
    }


Play = Callable[[Server, list[bool]], Coroutine[Any, Any, None]]


def watched(
    play: Callable[[Server, list[bool]], Coroutine[Any, Any, None]], startup: int = 100
) -> tuple[str, list[bool]]:
    """The verdict, and readiness as it was told, while `play` goes on."""

    async def run() -> tuple[str, list[bool]]:
        server, told = Server(), list[bool]()
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with asyncio.timeout(20), listening:
            player = asyncio.create_task(play(server, told))
            verdict = await Probes(container(port, startup), "127.0.0.1", told.append).watch()
            await player
        return verdict, told

    return asyncio.run(run())


async def until(check: Callable[[], object]) -> None:
    while not check():
        await asyncio.sleep(0.01)


def test_readiness_comes_and_goes_and_liveness_ends() -> None:
    async def play(server: Server, told: list[bool]) -> None:
        server.answers["/ready"] = 200
        await until(lambda: told[-1:] == [True])
        server.answers["/ready"] = 503
        await until(lambda: told[-1:] == [False])
        server.answers["/ready"] = 200
        await until(lambda: told[-1:] == [True])
        server.answers["/live"] = 500

    verdict, told = watched(play)
    assert verdict == "/live failed 3 times in a row"
    assert told[0] and [now for now, before in zip(told[1:], told, strict=False) if now != before] == [False, True]


def test_a_server_that_does_not_start_in_time() -> None:
    async def play(server: Server, told: list[bool]) -> None:
        await until(lambda: server.asked)

    verdict, told = watched(play, startup=3)
    assert "probes.startupSeconds" in verdict and told == []
