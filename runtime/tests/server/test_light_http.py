"""The small server of health and metrics."""

import asyncio
import socket
from typing import Any

from oarlock_runtime.server.light_http import LightHttp


async def page() -> tuple[int, str, bytes]:
    return 200, "text/plain", b"ok\n"


def test_a_connection_that_is_kept_open_says_nothing_when_the_process_ends() -> None:
    said: list[dict[str, Any]] = []
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        server = LightHttp({"/": page})
        await server.start(listener)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.get_running_loop().run_in_executor(None, client.recv, 1000)
        server.close()

    with client:
        asyncio.run(serve())
    assert said == []
