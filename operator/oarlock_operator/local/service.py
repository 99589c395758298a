"""The Service on this machine: takes connections on one port and hands each to a leader that is ready, in turn."""

import asyncio
import contextlib
from collections.abc import Callable

_TEXT = b'{"error":{"message":"no group serves yet","type":"service_unavailable","code":null,"param":null}}'
_NOBODY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)
_CHUNK = 1 << 16


class Service:
    """`leaders` gives the addresses that are ready now."""

    def __init__(self, leaders: Callable[[], list[str]], target: int) -> None:
        self._leaders = leaders
        self._target = target
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port. OSError when it is taken."""
        self._server = await asyncio.start_server(self._accept, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Takes no more connections and closes those that are open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._hand_over(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leaders = self._leaders()
        for offset in range(len(leaders)):
            address = leaders[(self._turn + offset) % len(leaders)]
            try:
                there, back = await asyncio.wait_for(asyncio.open_connection(address, self._target), 5)
            except (TimeoutError, OSError):
                continue
            self._turn += 1
            try:
                await self._both_ways((reader, back), (there, writer))
            finally:
                back.close()
            return
        writer.write(_NOBODY)
        await writer.drain()

    @staticmethod
    async def _both_ways(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Until both directions have ended; a client may end its own first and still read."""
        async with asyncio.TaskGroup() as group:
            for reader, writer in ways:
                group.create_task(_pour(reader, writer))


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
