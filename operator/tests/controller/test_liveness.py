"""Watch streams that stay open and tell nothing any more: liveness notices, by what listings find."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config
from operator_support.apiserver import Server

from oarlock_operator.api import names
from oarlock_operator.controller import watch
from oarlock_operator.controller.client import Api
from oarlock_operator.controller.health import Health
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.store import Store


class Relay:
    """Hands TCP connections on to a port of this machine; once `silent`, whatever comes back is swallowed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.silent = False

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._pour(reader, back, lambda: False), self._pour(there, writer, self._is_silent))

    def _is_silent(self) -> bool:
        return self.silent

    @staticmethod
    async def _pour(source: asyncio.StreamReader, target: asyncio.StreamWriter, swallow: Callable[[], bool]) -> None:
        try:
            while piece := await source.read(65536):
                if not swallow():
                    target.write(piece)
                    await target.drain()
        finally:
            target.close()


class Woken:
    """In place of the reconcile loop: who was woken."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, str]] = []

    def wake(self, key: tuple[str, str]) -> None:
        self.keys.append(key)


async def until(check: Callable[[], object]) -> None:
    for _ in range(300):
        if check():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within the time limit")


async def livez(port: int) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/livez") as answer:
        return answer.status, await answer.text()


def test_a_dead_watch_is_noticed(
    server: Server, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = 0.3
    monkeypatch.setattr(watch, "_SILENCE_SECONDS", silence)
    config: dict[str, Any] = yaml.safe_load(server.plane.kubeconfig.read_text())
    key = (namespace, "llm")

    def change(number: int) -> None:
        server.patch(names.KIND, *key, {"metadata": {"annotations": {"number": str(number)}}})

    async def story() -> None:
        relay = Relay(server.plane.port)
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{await relay.start()}"
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(file))  # kopf's: only the watch streams go through the relay
        configuration = kube.Configuration()
        await kube_config.load_kube_config(str(server.plane.kubeconfig), client_configuration=configuration)
        metrics = Metrics()
        api, store, woken, health = Api(kube.ApiClient(configuration), metrics), Store(), Woken(), Health(metrics)
        watcher = watch.Watcher(api, store, woken, (namespace,))
        health.trouble = lambda: watcher.dead
        port = await health.start("127.0.0.1", 0)
        stop = asyncio.Event()
        watching = asyncio.create_task(watcher.run(stop))
        try:
            server.create(namespace)
            await until(lambda: key in woken.keys)  # by an event: nothing was listed yet
            for number in range(3):
                change(number)
                await until(lambda wanted=str(number): number_of(store, key) == wanted)
                await asyncio.sleep(silence)
                await watcher.list_all()
            assert await livez(port) == (200, "ok")

            relay.silent = True
            for number in (7, 8):
                change(number)
                await asyncio.sleep(2 * silence)
                assert number_of(store, key) != str(number)
                await watcher.list_all()
                assert number_of(store, key) == str(number)  # listings make up for what was missed
            status, text = await livez(port)
            assert status == 500 and text.startswith(f"no events of {names.KIND} objects arrive")
        finally:
            stop.set()
            relay.silent = False
            await asyncio.wait({watching}, timeout=10)
            await relay.stop()
            await health.stop()
            await api.close()
        assert watching.done() and not watching.exception()

    asyncio.run(story())


def number_of(store: Store, key: tuple[str, str]) -> str:
    return str(store.deployments[key]["metadata"].get("annotations", {}).get("number", ""))


def test_no_listing_for_long_is_noticed() -> None:
    watcher = watch.Watcher(None, Store(), Woken(), ())
    assert watcher.dead is None
    watcher.listed -= 4 * watch.LISTING_SECONDS + 1
    assert watcher.dead is not None and "no listing was completed" in watcher.dead
