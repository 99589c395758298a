"""`oarlock-operator run`: waits for the lease, then watches and reconciles until it is stopped or the lease is lost."""

import asyncio
import gc
import logging
import os
import signal
import socket
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.controller.client import Api, ApiError
from oarlock_operator.controller.events import EventRecorder
from oarlock_operator.controller.health import Health
from oarlock_operator.controller.kubernetes import KubernetesCluster
from oarlock_operator.controller.lease import Lease
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.reconcile import Reconciler
from oarlock_operator.controller.store import Store
from oarlock_operator.controller.watch import Watcher
from oarlock_operator.render.settings import RenderSettings

LEASE_NAME = "oarlock-operator"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How the operator is run."""

    namespaces: tuple[str, ...] = ()  # watched; none = all
    lease_namespace: str = "oarlock-system"
    leader_election: bool = True
    host: str = "0.0.0.0"
    port: int = 8080
    render: RenderSettings = field(default_factory=RenderSettings)


async def run(options: Options, stop: asyncio.Event | None = None) -> int:
    """Runs until `stop` is set or a signal comes (0), or the lease is lost (1): then a new process starts afresh."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # To look through all that is kept for garbage takes a tenth of a second at a thousand deployments. That is done
    # after listings (`Watcher.keep_listing`), not in the middle of rounds; what has been imported is left out.
    gc.freeze()
    gc.set_threshold(5_000, 10, 1_000_000)
    metrics = Metrics()
    health = Health(metrics)
    api, lease_api = await Api.connect(metrics), await Api.connect(metrics)
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    lease = Lease(lease_api, options.lease_namespace, LEASE_NAME, identity)
    try:
        port = await health.start(options.host, options.port)
        log.info("health and metrics on %s:%d", options.host, port)
        health.ready = True
        if options.leader_election:
            if not await _unless(stop, lease.acquire()):
                return 0
            api.fence = lease.check
        metrics.leader.set(1)
        code = await _lead(options, api, lease, metrics, health, stop)
        metrics.leader.set(0)
        if options.leader_election:
            await lease.release()
        return code
    finally:
        await api.close()
        await lease_api.close()
        await health.stop()


async def _lead(options: Options, api: Api, lease: Lease, metrics: Metrics, health: Health, stop: asyncio.Event) -> int:
    store = Store()
    events = EventRecorder(api)
    reconciler = Reconciler(KubernetesCluster(api, store, events), options.render, metrics)
    watcher = Watcher(api, store, reconciler, options.namespaces)
    health.trouble, health.heard = (lambda: watcher.dead), (lambda: watcher.heard)
    # kopf is given a flag of its own: it ends by itself when a signal comes, and is ended by us otherwise.
    watching_ends = asyncio.Event()
    holding = asyncio.create_task(lease.hold() if options.leader_election else _forever(), name="lease")
    try:
        if not await _unless(stop, _first_listing(watcher), holding):
            return 1 if holding.done() else 0
        watching = asyncio.create_task(watcher.run(watching_ends), name="watch")
        listing = asyncio.create_task(watcher.keep_listing(), name="listing")
        posting = asyncio.create_task(events.run(), name="events")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        tasks = (holding, watching, listing, posting, stopping)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in (listing, stopping):
            task.cancel()
        await reconciler.close()
        await events.finish()
        posting.cancel()
        watching_ends.set()
        await asyncio.wait({watching}, timeout=10)
        failed = [task for task in (watching, listing) if task.done() and not task.cancelled() and task.exception()]
        for task in failed:
            log.error("%s ended", task.get_name(), exc_info=task.exception())
        if not watching.done():
            log.warning("the watch streams did not end in time")
            watching.cancel()
        return 1 if holding.done() or failed else 0
    finally:
        await reconciler.close()
        holding.cancel()


async def _forever() -> None:
    await asyncio.Event().wait()


async def _first_listing(watcher: Watcher) -> None:
    """Waits until the API server answers and knows our kind."""
    pause = 0.5
    while True:
        try:
            return await watcher.list_all()
        except ApiError as error:
            hint = f" (is the CRD {names.PLURAL}.{names.GROUP} installed?)" if error.status == 404 else ""
            log.warning("%s%s; next try in %.1f s", error, hint, pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 10.0)


async def _unless(
    stop: asyncio.Event, work: Coroutine[Any, Any, None], also: "asyncio.Task[Any] | None" = None
) -> bool:
    """Does `work` unless `stop` is set or `also` ends first; whether it was done."""
    doing = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    watched: set[asyncio.Task[Any]] = {doing, stopping}
    if also is not None:
        watched.add(also)
    await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not doing.done():
        doing.cancel()
        return False
    doing.result()
    return True
