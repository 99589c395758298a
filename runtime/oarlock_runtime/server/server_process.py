"""A process that speaks HTTP and gRPC: validates, tokenizes, streams. There are as many as `server_processes` says.

It answers from the first moment (503 while the model loads), loads the tokenizer while the engine loads the weights,
and goes on without a pause until the supervisor says drain, then stop.
"""

import asyncio
import contextlib
import gc
import logging
import socket
from pathlib import Path
from typing import Any

import uvloop

from oarlock_runtime.errors import OarlockError, RequestError
from oarlock_runtime.ipc.client import EngineClient
from oarlock_runtime.models.dummy import dummy_tokenizer
from oarlock_runtime.models.tokenizer import Tokenizer, load_tokenizer
from oarlock_runtime.server.control import Control
from oarlock_runtime.server.grpc.front import GrpcFront
from oarlock_runtime.server.http.front import HttpFront
from oarlock_runtime.server.process import run
from oarlock_runtime.server.service import Service, State
from oarlock_runtime.settings import Settings

BEAT_SECONDS = 1.0
_VERDICT_SECONDS = 2  # for the supervisor to say that the engine's process is gone, before we say that we lost it


def main(control: Control, settings: Settings, first: dict[str, Any]) -> None:
    # Exchanges that are cut on purpose are not errors; what goes wrong in ours, the handler tells.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(control, settings, first))


async def _serve(control: Control, settings: Settings, first: dict[str, Any]) -> None:
    await _ServerProcess(control, settings, first).run()


class _ServerProcess:
    def __init__(self, control: Control, settings: Settings, first: dict[str, Any]) -> None:
        self._control = control
        self._settings = settings
        self._listener = socket.socket(fileno=first["listener"]) if "listener" in first else None
        self._fronts: list[HttpFront | GrpcFront] = []
        self._client = EngineClient(Path(settings.run_dir), first["name"])

    async def run(self) -> None:
        service = self._service = Service(self._settings, self._client)
        if self._listener is not None:
            self._fronts.append(HttpFront(service, self._listener))
        if self._settings.grpc_port:
            self._fronts.append(GrpcFront(service))
        asyncio.get_running_loop().add_reader(self._control.socket, self._on_control)
        serving = asyncio.create_task(self._answer())
        tasks = [asyncio.create_task(one) for one in (self._open(), self._beat(), service.calls.watch())]
        done, _ = await asyncio.wait([serving, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for one in done:
            one.result()
        self._client.close()

    async def _answer(self) -> None:
        """Serves on all ports, until told to stop."""
        await asyncio.gather(*(front.serve() for front in self._fronts))

    async def _open(self) -> None:
        """Loads the tokenizer, waits for the engine, opens the service; ends when the engine is lost."""
        tokenizer, engine = await asyncio.gather(
            asyncio.to_thread(_load_tokenizer, self._settings),
            self._client.connect(self._settings.start_timeout),
        )
        # What is loaded stays; and a body of a million small lists must not be walked over and over while it is read.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self._service.open(tokenizer, engine)
        self._control.send("ready")
        reason = await asyncio.shield(self._client.closed)
        self._service.close(State.FAILED, now=True)
        await asyncio.sleep(_VERDICT_SECONDS)
        raise OarlockError(f"lost the engine: {reason}")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._control.send("beat")

    def _on_control(self) -> None:
        message = self._control.receive()
        match message and message["kind"]:
            case None:
                asyncio.get_running_loop().remove_reader(self._control.socket)
                self._stop()
            case "drain":
                self._service.close(State.DRAINING)
                self._draining = asyncio.create_task(self._drain())
            case "stop":
                self._service.close(State.DRAINING, now=True)
                self._stop()
            case "failed":
                self._service.close(State.FAILED, now=True)
                self._stop()
            case "scrape" if message is not None:
                families = self._service.metrics.families(len(self._service.calls))
                self._control.send("metrics", number=message["number"], families=families)

    def _stop(self) -> None:
        for front in self._fronts:
            front.stop()

    async def _drain(self) -> None:
        await self._service.calls.idle.wait()
        self._control.send("idle")


def _load_tokenizer(settings: Settings) -> Tokenizer:
    load = dummy_tokenizer if settings.load_format == "dummy" else load_tokenizer
    tokenizer = load(settings.model)
    with contextlib.suppress(RequestError):  # compiles the template now, not with the first request
        tokenizer.render_chat([{"role": "user", "content": ""}])
    return tokenizer


if __name__ == "__main__":
    run(main)
