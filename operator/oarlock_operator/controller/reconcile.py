"""The reconcile loop: one asyncio task a ModelDeployment, woken by events and timers; observe, decide, apply, again.

A round that fails is tried again after a pause that doubles. Rounds of one deployment never overlap, and deployments
take turns (`turns`). A round is short: it writes one thing after another, begins nothing more after `BREAK_SECONDS`,
and whatever is left is decided afresh by the next one. So nothing is written long after it was decided, others get
their turn in between, and writes don't meet in the API server. (Side by side they share its cores: none is done sooner,
and the last one late.)
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from oarlock_operator.api.deployment import ModelDeployment, SpecError
from oarlock_operator.api.status import ModelDeploymentStatus
from oarlock_operator.controller.cluster import Cluster, Conflict, Key
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.turns import Turns
from oarlock_operator.decide.actions import Action, Decision
from oarlock_operator.decide.decision import decide
from oarlock_operator.decide.snapshot import Snapshot
from oarlock_operator.render.settings import RenderSettings

BREAK_SECONDS = 0.03
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
        self._turns = Turns()
        self._known: set[Key] = set()  # deployments that had a round
        self._unfinished: set[Key] = set()  # those whose last round left something undone

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
            if not woken.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), min(after, RESYNC_SECONDS))
        del self._tasks[key], self._woken[key]
        self._known.discard(key)
        self._unfinished.discard(key)
        self._metrics.deployments.set(len(self._tasks))

    async def _turn(self, key: Key) -> Decision | None:
        """Waits for its turn and goes one round; None when the deployment is gone."""
        queued = self._since.setdefault(key, time.monotonic())
        async with self._turns.one(known=key in self._known):
            self._known.add(key)
            self._since.pop(key, None)
            self._woken[key].clear()
            self._metrics.queueing.observe(time.monotonic() - queued)
            async with asyncio.timeout(_ROUND_SECONDS):
                return await self._round(key)

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
        decision = decide(replace(snapshot, unfinished=key in self._unfinished), self._settings)
        try:
            # First the status, then what it announces: see api/status.py.
            progress = decision.status != deployment.status
            if progress:
                await self._cluster.write_status(deployment, decision.status)
            self._count(snapshot, decision)
            for event in decision.events:
                log.info("%s/%s: %s: %s", *key, event.reason, event.message)
                self._cluster.report(deployment, event)
            self._unfinished.add(key)
            if await self._carry_out(deployment, decision.actions, begin + BREAK_SECONDS, progress):
                self._unfinished.discard(key)
            else:
                self.wake(key)
        except Conflict:
            await self._cluster.refresh(key)
            raise
        finally:
            self._metrics.reconcile.observe(time.monotonic() - begin)
        return decision

    async def _carry_out(
        self, deployment: ModelDeployment, actions: Sequence[Action], end: float, progress: bool
    ) -> bool:
        """Carries out actions in order until all are, or it is later than `end`; whether all are. Raises what one of
        them did.

        At least one is carried out, unless the round has made `progress` already.
        """
        left = deque(actions)
        failures = []
        while left and not (progress and time.monotonic() > end):
            try:
                await self._cluster.carry_out(deployment, left.popleft())
                progress = True
            except Conflict:
                raise
            except Exception as error:
                failures.append(error)  # the others are tried all the same: pods don't wait for a Service
        if failures:
            raise failures[0]
        return not left

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
