"""A very small HTTP server for health and metrics: GET of a few fixed paths. Runs in the supervisor.

A web framework would more than double the supervisor's memory and start-up time for three pages.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

Page = Callable[[], Awaitable[tuple[int, str, bytes]]]  # status, content type, body
_MAX_HEAD = 16384
_READ_SECONDS = 5.0
_MAX_CONNECTIONS = 128


class LightHttp:
    """Serves `pages` (path to page) on a listening socket until closed."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=_MAX_HEAD)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            while self._open <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_READ_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                status, kind, body = await self._answer(lines[0])
                last = any(line.lower().replace(" ", "") == "connection:close" for line in lines[1:]) or status >= 400
                shown = b"" if head.startswith(b"HEAD ") else body
                writer.write(
                    f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n"
                    f"content-length: {len(body)}\r\nconnection: {'close' if last else 'keep-alive'}\r\n\r\n".encode()
                    + shown
                )
                async with asyncio.timeout(_READ_SECONDS):
                    await writer.drain()
                if last:
                    break
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a client that left, dawdled or speaks something else
        except asyncio.CancelledError:
            pass  # the process ends; a connection that a client keeps open has nothing to say about it
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, request_line: str) -> tuple[int, str, bytes]:
        parts = request_line.split(" ")
        if len(parts) != 3:
            return 400, "text/plain", b"not HTTP\n"
        method, target, _ = parts
        page = self._pages.get(target.partition("?")[0])
        if page is None:
            return 404, "text/plain", f"only {', '.join(self._pages)} are here\n".encode()
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"only GET is allowed\n"
        return await page()
