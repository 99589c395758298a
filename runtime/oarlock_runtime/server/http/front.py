"""The web server of one server process: uvicorn on a socket that the supervisor made. Runs in the server processes."""

import socket

import uvicorn

from oarlock_runtime.server.http.app import build_app
from oarlock_runtime.server.service import Service

KEEP_ALIVE_SECONDS = 75
GOODBYE_SECONDS = 1  # for answers that are on their way when the process is told to stop


class HttpFront:
    """Answers from `serve` on (503 while the model loads) until `stop`."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        self._listener = listener
        self._web = uvicorn.Server(
            uvicorn.Config(
                build_app(service),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GOODBYE_SECONDS,
            )
        )

    async def serve(self) -> None:
        """Serves until `stop`."""
        await self._web.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Ends soon: `serve` returns."""
        self._web.should_exit = True
