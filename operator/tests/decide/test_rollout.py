"""Scaling and rolling updates: who serves at every moment, who leaves first, and updates away from a broken version."""

from datetime import timedelta

import pytest
from operator_support.world import World

from oarlock_operator.api.spec import Rollout
from oarlock_operator.decide.rollout import Choice, GroupFacts, choose


def old(index: int, ready: bool = True) -> GroupFacts:
    return GroupFacts(index, updated=False, ready=ready)


def new(index: int, ready: bool = True) -> GroupFacts:
    return GroupFacts(index, updated=True, ready=ready)


def gone(index: int, holding: bool = True) -> GroupFacts:
    return GroupFacts(index, updated=False, ready=False, leaving=True, holding=holding)


SURGE, FIT = Rollout(), Rollout(max_surge=0, max_unavailable=1)
CHOICES = [
    ("first start", [], 2, SURGE, Choice(create=(0, 1))),
    ("nothing to do", [new(0), new(1)], 2, SURGE, Choice()),
    ("scale up fills gaps", [new(0), new(2)], 4, SURGE, Choice(create=(1, 3))),
    ("scale down takes the highest", [new(0), new(1), new(2)], 1, SURGE, Choice(drain=(1, 2))),
    ("scale down takes the broken first", [new(0, False), new(1)], 1, SURGE, Choice(drain=(0,))),
    ("update begins with one more", [old(0), old(1)], 2, SURGE, Choice(create=(2,))),
    ("update waits for the new one", [old(0), old(1), new(2, False)], 2, SURGE, Choice()),
    ("then an old one leaves", [old(0), old(1), new(2)], 2, SURGE, Choice(drain=(1,))),
    ("its GPUs are waited for", [old(0), gone(1), new(2)], 2, SURGE, Choice()),
    ("but not if it is stuck", [old(0), gone(1, holding=False), new(2)], 2, SURGE, Choice(create=(3,))),
    ("the last old one", [old(0), new(2), new(3)], 2, SURGE, Choice(drain=(0,))),
    ("without spare nodes one leaves first", [old(0), old(1)], 2, FIT, Choice(drain=(1,))),
    ("and its place is taken when free", [old(0), gone(1, holding=False)], 2, FIT, Choice(create=(2,))),
    ("not before", [old(0), gone(1)], 2, FIT, Choice()),
    ("without spare nodes, the last", [gone(0)], 1, FIT, Choice()),
    ("a broken old version is replaced", [old(0, False), old(1, False)], 2, SURGE, Choice(replace=(0, 1))),
    ("half broken", [old(0), old(1, False)], 2, SURGE, Choice(create=(2,), replace=(1,))),
    ("paused", [old(0), old(1)], 2, Rollout(paused=True), Choice()),
    ("paused but scaled", [old(0), old(1)], 3, Rollout(paused=True), Choice(create=(2,))),
    ("update and scale down", [old(0), old(1), old(2), old(3)], 1, SURGE, Choice(create=(), drain=(1, 2, 3))),
]


@pytest.mark.parametrize(
    ("what", "groups", "replicas", "rollout", "choice"), CHOICES, ids=[case[0] for case in CHOICES]
)
def test_choice(what: str, groups: list[GroupFacts], replicas: int, rollout: Rollout, choice: Choice) -> None:
    assert choose(groups, replicas, rollout) == choice


@pytest.mark.parametrize("rollout", [{"maxSurge": 1}, {"maxSurge": 0, "maxUnavailable": 1}, {"maxSurge": 2}])
def test_an_update_keeps_enough_groups_serving(rollout: dict[str, int]) -> None:
    world = World(replicas=3, parallelism={"nodes": 2}, rollout=rollout, drain={"timeoutSeconds": 20})
    world.run(30)
    world.change(server={"maxSequences": 7})
    most = 3 + rollout["maxSurge"]
    for _ in range(400):
        world.reconcile()
        assert len(world.serving()) >= 3 - rollout.get("maxUnavailable", 0)
        assert len({pod.group for pod in world.pods.values()}) <= most
        world.tick()
    assert world.status.updated_replicas == 3 and world.condition("Progressing").reason == "Complete"
    assert {pod.revision for pod in world.pods.values()} == {world.status.revision}
    assert world.group(world.status.groups[0].index).restarts == 0


def test_a_new_version_that_never_serves_leaves_the_old_alone() -> None:
    world = World(replicas=2, rollout={"progressDeadlineSeconds": 60})
    world.run(20)
    before = world.serving()
    world.change(server={"maxSequences": 7})
    world.broken = {world.decide().status.revision}
    world.run(200)
    assert world.serving() == before
    assert world.condition("Ready").status == "True" and world.condition("Ready").reason == "Updating"
    assert world.condition("Progressing").reason == "ProgressDeadlineExceeded"
    assert world.condition("Degraded").status == "True"
    world.broken = set()
    world.change(server={"maxSequences": 8})
    world.run(900)
    assert world.condition("Progressing").reason == "Complete"


def test_leaders_drain_before_their_workers_go() -> None:
    world = World(replicas=2, parallelism={"nodes": 2}, drain={"timeoutSeconds": 20})
    world.run(20)
    world.change(replicas=1)
    world.reconcile()
    leader, worker = world.pods["llm-1-e2-0"], world.pods["llm-1-e2-1"]
    assert leader.deletion_due == world.now + timedelta(seconds=40) and not worker.deleting
    assert world.group(1).state == "Draining" and world.status.replicas == 1
    world.run(30)
    assert not world.pods["llm-1-e2-1"].deleting
    world.run(20)
    assert sorted(world.pods) == ["llm-0-e1-0", "llm-0-e1-1"]
    assert [group.index for group in world.status.groups] == [0]
    assert world.group(0).restarts == 0 and "GroupRemoved" in world.reasons()


def test_scaling_up_while_a_group_drains_makes_another() -> None:
    world = World(replicas=2, drain={"timeoutSeconds": 20})
    world.run(20)
    world.change(replicas=1)
    world.run(2)
    world.change(replicas=2)
    world.run(60)
    assert sorted(world.pods) == ["llm-0-e1-0", "llm-2-e3-0"]


def test_restart_annotation_rolls_all_groups() -> None:
    world = World()
    world.run(20)
    world.body["metadata"]["annotations"] = {"serving.oarlock.dev/restart": "now"}
    world.run(400)
    assert [pod.epoch for pod in world.pods.values()] == [2]


@pytest.mark.parametrize("crash_after", range(6))
def test_an_operator_killed_during_an_update_ends_in_the_same_place(crash_after: int) -> None:
    world = World(replicas=2, drain={"timeoutSeconds": 5})
    world.run(20)
    world.change(server={"maxSequences": 7})
    for _ in range(120):
        world.reconcile(crash_after=crash_after)
        world.tick()
        assert len(world.serving()) >= 2
        world.reconcile()
        world.tick()
    assert world.status.updated_replicas == 2 and len(world.pods) == 2
    assert all(group.restarts == 0 for group in world.status.groups)
