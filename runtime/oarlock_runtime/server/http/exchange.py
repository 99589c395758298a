"""One HTTP exchange, on bare ASGI: reading a bounded body, noticing that the client left, writing. Used by servers."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.http.replies import error_object

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = (b"content-type", b"application/json")
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class ClientGoneError(Exception):
    """The client closed the connection, or takes nothing; nothing more can be said to it."""


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The request's body. RequestError 413 beyond `limit` bytes, 408 after `seconds`; ClientGoneError."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise RequestError("", f"content-encoding {value.decode('latin-1')!r} is not supported", 415)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, limit)
    except TimeoutError:
        raise RequestError("", f"the body did not arrive within {seconds:g} s", 408, "request_timeout") from None


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> RequestError:
    return RequestError("", f"the body is larger than {limit} bytes", 413, "body_too_large")


async def client_left(receive: Receive) -> None:
    """Returns when the client has closed the connection (or the answer is complete)."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [JSON, length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: RequestError, more: list[tuple[bytes, bytes]] | None = None) -> None:
    """An error in OpenAI's shape, with the headers that belong to its status."""
    headers = list(more or ())
    if error.retry_after > 0:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):  # the rest of the body is still on its way; nobody will read it
        headers.append((b"connection", b"close"))
    await send_json(send, error.status, msgspec.json.encode(error_object(error)), headers)
