"""`oarlock-operator local FILE`: the operator's decisions carried out as processes, until Ctrl-C.

The file is looked at every second: a changed spec is rolled out as it would be in a cluster. The first Ctrl-C drains,
the second ends everything at once. Nothing is left running either way.
"""

import asyncio
import fcntl
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oarlock_operator.api import names
from oarlock_operator.api.deployment import SpecError, parse
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.reconcile import Reconciler
from oarlock_operator.local.cluster import LocalCluster
from oarlock_operator.local.screen import Screen
from oarlock_operator.local.service import Service
from oarlock_operator.render.settings import RenderSettings

_LOOK_SECONDS = 1.0
_DRAIN_SLACK_SECONDS = 30.0


class LocalError(OSError):
    """Something on this machine stands in the way; the text says what to do."""


async def run(
    body: Mapping[str, Any], settings: RenderSettings, port: int, state: Path | None, file: Path | None = None
) -> int:
    """Serves the deployment on 127.0.0.1:port. Returns 0 after a drain, 130 when it was cut short."""
    deployment = parse(body)
    cache = Path.home() / ".cache" / "oarlock"
    folder = (state or cache / "local") / deployment.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LocalError(f"{deployment.name} is already served here (lock {folder / 'lock'})") from None
        models = state or cache
        cluster = LocalCluster(body, models, folder / "pods", _oarlock(), len(_gpus()))
        shutil.rmtree(folder / "pods", ignore_errors=True)
        return await _serve(cluster, settings, port, folder, file)


async def _serve(cluster: LocalCluster, settings: RenderSettings, port: int, folder: Path, file: Path | None) -> int:
    service = Service(cluster.leaders, dict((name, number) for name, _, number in names.PORTS)["http"])
    try:
        port = await service.start("127.0.0.1", port)
    except OSError:
        raise LocalError(f"port {port} of 127.0.0.1 is taken: choose another with --port") from None
    url = f"http://127.0.0.1:{port}/v1"
    reconciler = Reconciler(cluster, settings, Metrics())
    cluster.wake = reconciler.wake
    signals = asyncio.Queue[int]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    with Screen(cluster.key[1], url) as screen:
        cluster.told = screen.event
        screen.line(f"logs of the processes are in {folder / 'pods'}; Ctrl-C ends")
        cluster.wake(cluster.key)
        watching = asyncio.create_task(_watch_file(cluster, file, screen)) if file is not None else None
        try:
            return await _until_gone(cluster, signals, screen, url)
        finally:
            if watching is not None:
                watching.cancel()
            await reconciler.close()
            cluster.kill()
            await asyncio.gather(*(pod.task for pod in list(cluster.pods.values())), return_exceptions=True)
            await service.stop()


async def _until_gone(cluster: LocalCluster, signals: "asyncio.Queue[int]", screen: Screen, url: str) -> int:
    announced = False
    limit = float("inf")
    loop = asyncio.get_running_loop()
    while not cluster.gone:
        screen.show(cluster.status)
        serving = bool(cluster.leaders())
        if serving and not announced:
            screen.line(f"ready: {url}", "bold green")
        announced = serving
        try:
            await asyncio.wait_for(signals.get(), 0.2)
        except TimeoutError:
            if loop.time() > limit:
                return 130
            continue
        if limit != float("inf"):
            return 130
        limit = loop.time() + parse(cluster.body).spec.grace_seconds + _DRAIN_SLACK_SECONDS
        screen.line("draining; Ctrl-C again ends at once", "magenta")
        cluster.delete()
    return 0


async def _watch_file(cluster: LocalCluster, file: Path, screen: Screen) -> None:
    """Rolls out what is written to the file."""
    seen = file.stat().st_mtime_ns
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            now = file.stat().st_mtime_ns
            if now == seen:
                continue
            seen = now
            body = yaml.safe_load(file.read_text(encoding="utf-8"))
            parse(body)
            cluster.change(body["spec"])
        except (OSError, SpecError, yaml.YAMLError, AttributeError, TypeError) as error:
            screen.line(f"{file}: {error}; the old spec stays", "red")


def _oarlock() -> str:
    """The runtime's program: beside this one, or on the PATH."""
    beside = Path(sys.executable).parent / "oarlock"
    found = str(beside) if beside.exists() else shutil.which("oarlock")
    if found is None:
        raise LocalError("the server's program `oarlock` is not installed: pip install 'oarlock[runtime]'")
    return found


def _gpus() -> list[Path]:
    return [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
