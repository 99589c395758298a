"""`oarlock-operator local FILE`: the operator's decisions carried out as processes, until Ctrl-C.

The file is looked at every second: a changed spec is rolled out as it would be in a cluster. The first Ctrl-C drains,
the second ends everything at once. Nothing is left running either way, nor when the runner itself is killed.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from oarlock_operator.api import names
from oarlock_operator.api.deployment import SpecError, parse
from oarlock_operator.api.document import Document, DocumentError
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.reconcile import Reconciler
from oarlock_operator.local.address import take_address
from oarlock_operator.local.cluster import LocalCluster
from oarlock_operator.local.process import end_leftovers
from oarlock_operator.local.screen import Screen, View
from oarlock_operator.local.service import Service
from oarlock_operator.render.settings import RenderSettings

_LOOK_SECONDS = 1.0
_SHOW_SECONDS = 0.2
_DRAIN_SLACK_SECONDS = 30.0


class LocalError(OSError):
    """Something on this machine stands in the way; the text says what to do."""


async def run(document: Document, port: int, state: Path | None) -> int:
    """Serves the deployment on 127.0.0.1:port. Returns 0 after a drain, 130 when it was cut short."""
    body, deployment = document.load()
    if deployment.spec.server.api_key_secret is not None and not os.environ.get("OARLOCK_API_KEY"):
        raise LocalError("spec.server.apiKeySecret: Secrets are not read here; put the keys into OARLOCK_API_KEY")
    cache = Path.home() / ".cache" / "oarlock"
    folder = (state or cache / "local") / deployment.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        _claim(lock, deployment.name)
        end_leftovers(folder / "pods")
        shutil.rmtree(folder / "pods", ignore_errors=True)
        take_address().release()  # raises where pods can't have the ports they need
        cluster = LocalCluster(body, state or cache, folder / "pods", _oarlock(), len(_gpus()))
        with Screen() as screen:
            async with _services(cluster, port, screen) as port:
                return await _serve(cluster, document, f"http://127.0.0.1:{port}/v1", folder, screen)


def _claim(lock: IO[str], name: str) -> None:
    """One runner a name and folder; who holds it is written into the lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        message = f"{name} is already served here, by process {lock.read() or 'unknown'}: end that one first"
        raise LocalError(message) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


@asynccontextmanager
async def _services(cluster: LocalCluster, port: int, screen: Screen) -> AsyncIterator[int]:
    """The Service's ports on 127.0.0.1. The API's must be free; where another is taken, members have it themselves."""
    services: list[Service] = []
    try:
        for name, _, number in names.service_ports():
            service = Service(cluster.leaders, number)
            try:
                found = await service.start("127.0.0.1", port if name == "http" else number)
            except OSError:
                if name == "http":
                    raise LocalError(f"port {port} of 127.0.0.1 is taken: choose another with --port") from None
                screen.line(f"port {number} of 127.0.0.1 ({name}) is taken: ask a member's own address", "dim")
                continue
            services.append(service)
            port = found if name == "http" else port
        yield port
    finally:
        for service in services:
            await service.stop()


async def _serve(cluster: LocalCluster, document: Document, url: str, folder: Path, screen: Screen) -> int:
    # A node's folder is one of the user's own here.
    reconciler = Reconciler(cluster, RenderSettings(allow_host_path=True), Metrics())
    cluster.wake = reconciler.wake
    cluster.told = screen.event
    signals = asyncio.Queue[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    screen.line(f"logs of the processes are in {folder / 'pods'}; Ctrl-C ends", "dim")
    cluster.wake(cluster.key)
    watching = asyncio.create_task(_watch_file(cluster, document, screen))
    try:
        code = await _until_gone(cluster, signals, screen, url)
    finally:
        watching.cancel()
        await reconciler.close()
        cluster.kill()
        await asyncio.gather(*(pod.task for pod in list(cluster.pods.values())), return_exceptions=True)
    screen.line("stopped" if code == 0 else "ended at once", "magenta")
    return code


async def _until_gone(cluster: LocalCluster, signals: "asyncio.Queue[int]", screen: Screen, url: str) -> int:
    announced = draining = False
    limit = float("inf")
    loop = asyncio.get_running_loop()
    while not cluster.gone:
        screen.show(View(cluster.key[1], url, cluster.status, cluster.download(), cluster.doing()))
        serving = bool(cluster.leaders())
        if serving and not announced and not draining:
            screen.line(f"ready: {url} (talk to it: oarlock chat --url {url.removesuffix('/v1')})", "bold green")
        announced = serving
        try:
            await asyncio.wait_for(signals.get(), _SHOW_SECONDS)
        except TimeoutError:
            if loop.time() > limit:
                return 130
            continue
        if draining:
            return 130
        draining = True
        limit = loop.time() + parse(cluster.body).spec.grace_seconds + _DRAIN_SLACK_SECONDS
        screen.line("draining: requests that run are finished; Ctrl-C again ends at once", "magenta")
        cluster.delete()
    return 0


async def _watch_file(cluster: LocalCluster, document: Document, screen: Screen) -> None:
    """Rolls out what is written to the file."""
    if document.file is None:
        return
    seen = document.file.stat().st_mtime_ns
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            now = document.file.stat().st_mtime_ns
            if now == seen:
                continue
            seen = now
            body, _ = document.load()
            cluster.change(body["spec"])
        except (OSError, SpecError, DocumentError) as error:
            screen.line(f"{document.file}: {error}; the old spec stays", "red")


def _oarlock() -> str:
    """The runtime's program: beside this one, or on the PATH."""
    beside = Path(sys.executable).parent / "oarlock"
    found = str(beside) if beside.exists() else shutil.which("oarlock")
    if found is None:
        raise LocalError("the server's program `oarlock` is not installed: pip install 'oarlock[runtime]'")
    return found


def _gpus() -> list[Path]:
    return [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
