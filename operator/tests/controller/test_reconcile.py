"""Rounds: how much one of them does, and what becomes of the rest."""

import asyncio
from collections.abc import Callable

from operator_support.world import World

from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.api.status import ModelDeploymentStatus
from oarlock_operator.controller.client import ApiError
from oarlock_operator.controller.cluster import Key
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.reconcile import BREAK_SECONDS, Reconciler
from oarlock_operator.decide.actions import Action, Apply, Event
from oarlock_operator.decide.snapshot import Snapshot
from oarlock_operator.render.settings import RenderSettings

KEY = ("team", "llm")


class SlowCluster:
    """Implements `Cluster` over a world whose every write takes `seconds`. `refused`: a kind that can't be written."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        self.seconds = seconds
        self.refused = ""
        self.rounds: list[int] = []  # writes of each

    def snapshot(self, key: Key) -> Snapshot:
        self.rounds.append(0)
        return self.world.snapshot()

    async def write_status(self, deployment: ModelDeployment, status: ModelDeploymentStatus) -> None:
        await self._write()
        self.world.body["status"] = status.to_wire()

    async def carry_out(self, deployment: ModelDeployment, action: Action) -> None:
        await self._write()
        if isinstance(action, Apply) and action.body["kind"] == self.refused:
            raise ApiError(403, "quota")
        self.world.carry_out(action)

    async def _write(self) -> None:
        self.rounds[-1] += 1
        await asyncio.sleep(self.seconds)

    def report(self, deployment: ModelDeployment, event: Event) -> None:
        self.world.events.append(event)

    async def sample_progress(self, key: Key, pods: tuple[str, ...]) -> None:
        pass

    async def refresh(self, key: Key) -> None:
        pass

    async def report_unreadable(self, key: Key, message: str) -> None:
        raise AssertionError(message)


def run(cluster: SlowCluster, *checks: Callable[[], object]) -> None:
    """Until the checks held, one after the other."""

    async def story() -> None:
        reconciler = Reconciler(cluster, RenderSettings(), Metrics())
        reconciler.wake(KEY)
        async with asyncio.timeout(20):
            for check in checks:
                while not check():
                    await asyncio.sleep(0.01)
        await reconciler.close()

    asyncio.run(story())


def test_a_round_ends_in_time_and_the_next_does_the_rest() -> None:
    world = World(parallelism={"nodes": 4})
    cluster = SlowCluster(world, BREAK_SECONDS * 0.7)
    run(cluster, lambda: len(world.pods) == 4)
    assert set(cluster.rounds) <= {1, 2}  # the second begins just before the time is up
    assert {kind for kind, _ in world.objects} == {"Service", "PodDisruptionBudget"}
    # What wasn't made yet is not what somebody took away.
    assert world.reasons() == ["GroupCreated"]


def test_slow_writes_are_one_a_round() -> None:
    world = World(parallelism={"nodes": 2})
    cluster = SlowCluster(world, BREAK_SECONDS * 1.1)
    run(cluster, lambda: len(world.pods) == 2)
    assert set(cluster.rounds) == {1}


def test_a_refused_write_holds_up_no_others() -> None:
    world = World()
    cluster = SlowCluster(world, BREAK_SECONDS * 1.1)
    cluster.refused = "Service"

    def allow() -> bool:
        cluster.refused = ""
        return True

    run(cluster, lambda: world.pods, allow, lambda: ("Service", "llm") in world.objects)
    assert "DriftRepaired" not in world.reasons()


def test_what_is_taken_away_later_is_drift() -> None:
    world = World()
    cluster = SlowCluster(world, 0.0)
    run(cluster, lambda: world.pods)
    del world.objects["Service", "llm"]
    run(cluster, lambda: ("Service", "llm") in world.objects)
    assert "DriftRepaired" in world.reasons()
