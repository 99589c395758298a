"""The reconcile loop: one asyncio task a ModelDeployment, woken by events and timers; observe, decide, apply, again.

A round that fails is tried again after a pause that doubles. Rounds of one deployment never overlap, and deployments
take turns: a round sends its writes side by side, so that two at a time would be done no sooner and each take twice as
long. Only a round that takes longer than `SLOW_SECONDS` goes on beside others: what it waits for holds nobody else up.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from oarlock_operator.api.deployment import SpecError
from oarlock_operator.api.status import ModelDeploymentStatus
from oarlock_operator.controller.cluster import Cluster, Conflict, Key
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.decide.actions import Decision
from oarlock_operator.decide.decision import decide
from oarlock_operator.decide.snapshot import Snapshot
from oarlock_operator.render.settings import RenderSettings

SLOW_SECONDS = 1.0
RESYNC_SECONDS = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_CONFLICT_PAUSE = 0.05
_ROUND_SECONDS = 60.0

log = logging.getLogger(__name__)


class Reconciler:
    """Owns the tasks. `wake` may be called at any time, also for deployments that don't exist."""

    def __init__(self, cluster: Cluster, settings: RenderSettings, metrics: Metrics) -> None:
        self._cluster = cluster
        self._settings = settings
        self._metrics = metrics
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._woken: dict[Key, asyncio.Event] = {}
        self._since: dict[Key, float] = {}
        self._turns = asyncio.Semaphore(1)

    def wake(self, key: Key) -> None:
        """Something about this deployment may have changed."""
        self._since.setdefault(key, time.monotonic())
        self._woken.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._look_after(key), name=f"reconcile {key[0]}/{key[1]}")
            self._metrics.deployments.set(len(self._tasks))

    async def close(self) -> None:
        """Ends all tasks where they are; whoever comes next goes on from there."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_after(self, key: Key) -> None:
        pause = _FIRST_PAUSE
        woken = self._woken[key]
        while True:
            try:
                decision = await self._turn(key)
                if decision is None:
                    break
                pause = _FIRST_PAUSE
            except Conflict:
                await asyncio.sleep(_CONFLICT_PAUSE)
                continue
            except Exception as error:
                self._metrics.errors.inc()
                log.warning("%s/%s: %s; next try in %.1f s", *key, _text(error), pause)
                log.debug("traceback", exc_info=error)
                # Events don't shorten the pause: they may be the failure's own.
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if decision.downloading:
                await self._cluster.sample_progress(key, decision.downloading)
            after = RESYNC_SECONDS if decision.wake_after is None else max(decision.wake_after, 0.05)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), min(after, RESYNC_SECONDS))
        del self._tasks[key], self._woken[key]
        self._metrics.deployments.set(len(self._tasks))

    async def _turn(self, key: Key) -> Decision | None:
        """Waits for its turn and goes one round; None when the deployment is gone."""
        queued = self._since.setdefault(key, time.monotonic())
        async with self._one_at_a_time():
            self._since.pop(key, None)
            self._woken[key].clear()
            self._metrics.queueing.observe(time.monotonic() - queued)
            async with asyncio.timeout(_ROUND_SECONDS):
                return await self._round(key)

    @contextlib.asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """The next one's turn begins when this one has ended, or has taken long."""
        await self._turns.acquire()
        mine = True

        def give_up() -> None:
            nonlocal mine
            if mine:
                mine = False
                self._turns.release()

        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()

    async def _round(self, key: Key) -> Decision | None:
        """One round; None when the deployment is gone."""
        begin = time.monotonic()
        try:
            snapshot = self._cluster.snapshot(key)
        except SpecError as error:
            await self._cluster.report_unreadable(key, str(error))
            return Decision(ModelDeploymentStatus())
        if snapshot is None:
            return None
        deployment = snapshot.deployment
        decision = decide(snapshot, self._settings)
        try:
            # First the status, then what it announces: see api/status.py.
            if decision.status != deployment.status:
                await self._cluster.write_status(deployment, decision.status)
            self._count(snapshot, decision)
            for event in decision.events:
                log.info("%s/%s: %s: %s", *key, event.reason, event.message)
                self._cluster.report(deployment, event)
            results = await asyncio.gather(
                *(self._cluster.carry_out(deployment, action) for action in decision.actions), return_exceptions=True
            )
            failed = [result for result in results if isinstance(result, BaseException)]
            if failed:
                raise failed[0]
        except Conflict:
            await self._cluster.refresh(key)
            raise
        finally:
            self._metrics.reconcile.observe(time.monotonic() - begin)
        return decision

    def _count(self, snapshot: Snapshot, decision: Decision) -> None:
        before = {group.index: group for group in snapshot.deployment.status.groups}
        for group in decision.status.groups:
            old = before.get(group.index)
            if old is not None and group.restarts > old.restarts:
                key = (snapshot.deployment.namespace, snapshot.deployment.name)
                self._metrics.restarts.labels(*key).inc()
            newly = group.ready_time is not None and (old is None or old.ready_time != group.ready_time)
            if newly and group.ready_time and group.started_time:
                self._metrics.formation.observe((group.ready_time - group.started_time).total_seconds())


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
