"""Losing a member ends the epoch of the whole group: every way to lose one, back-off, budget, stuck nodes."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from operator_support.world import World

WORKER = "llm-0-e1-1"

LOSSES: dict[str, Callable[[World], None]] = {
    "its server died": lambda world: world.kill(WORKER),
    "its pod was deleted": lambda world: world.alter(WORKER, deletion_due=world.now + timedelta(seconds=30)),
    "its pod vanished": lambda world: world.remove(WORKER),
    "its address changed": lambda world: world.alter(WORKER, ip="10.9.9.9"),
    "its address is gone": lambda world: world.alter(WORKER, ip=""),
    "another pod took its name": lambda world: world.alter(WORKER, uid="other"),
    "it was evicted": lambda world: world.alter(WORKER, phase="Failed", reason="Evicted"),
}


def formed() -> World:
    world = World(parallelism={"nodes": 2})
    world.run(20)
    return world


@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_remakes_the_whole_group(loss: str) -> None:
    world = formed()
    LOSSES[loss](world)
    world.reconcile()
    # What is left of the old epoch goes, with little grace.
    leader = world.pods["llm-0-e1-0"]
    assert leader.deletion_due is not None and leader.deletion_due - world.now <= timedelta(seconds=5)
    world.run(45)
    assert sorted(world.pods) == ["llm-0-e2-0", "llm-0-e2-1"]
    group = world.group(0)
    assert (group.epoch, group.restarts, group.state) == (2, 1, "Ready")
    assert group.last_restart_reason and world.reasons().count("GroupRestarting") == 1
    assert world.condition("Ready").status == "True"


@pytest.mark.parametrize("crash_after", range(7))
@pytest.mark.parametrize("loss", LOSSES)
def test_an_operator_killed_at_any_write_ends_in_the_same_place(loss: str, crash_after: int) -> None:
    world = formed()
    LOSSES[loss](world)
    world.reconcile(crash_after=crash_after)
    world.tick()
    world.run(45)
    assert sorted(world.pods) == ["llm-0-e2-0", "llm-0-e2-1"]
    assert world.group(0).restarts == 1


def test_members_of_two_epochs_never_share_a_roster() -> None:
    world = formed()
    world.alter("llm-0-e1-0", node="dead")
    world.kill(WORKER)
    world.run(20)
    for pod in world.pods.values():
        members = pod.roster_uids.split(",")
        assert all(other.epoch == pod.epoch for other in world.pods.values() if other.uid in members)


def test_a_pod_stuck_on_a_dead_node_holds_nobody_up() -> None:
    world = formed()
    world.alter(WORKER, node="dead", deletion_due=world.now)
    world.run(30)
    assert world.condition("Ready").status == "True"
    assert {pod.epoch for pod in world.pods.values() if pod.node != "dead"} == {2}


def test_a_partly_written_roster_is_not_rewritten_for_a_new_address() -> None:
    world = World(parallelism={"nodes": 2})
    for _ in range(20):
        decision = world.decide()
        if any(type(action).__name__ == "WriteRoster" for action in decision.actions):
            break
        world.reconcile()
        world.tick()
    world.reconcile(crash_after=2)  # status and the first member
    assert [world.pods[f"llm-0-e1-{rank}"].formed for rank in (0, 1)] == [True, False]
    world.alter(WORKER, ip="10.9.9.9")
    world.run(20)
    assert {pod.epoch for pod in world.pods.values()} == {2}


def test_back_off_doubles_and_the_budget_ends_it() -> None:
    world = World(restart={"budget": 3, "backoffSeconds": 10, "maxBackoffSeconds": 15, "windowSeconds": 3600})
    world.broken = {world.decide().status.revision}
    pauses = []
    for _ in range(400):
        before = world.group(0).restarts if world.status.groups else 0
        world.reconcile()
        group = world.group(0)
        if group.restarts > before and group.not_before is not None:
            pauses.append((group.not_before - world.now).total_seconds())
        world.tick()
    assert pauses[:3] == [0, 10, 15]
    assert 3000 < pauses[3] < 3600 and len(pauses) == 4
    assert world.condition("Degraded").reason == "RestartBudgetExhausted"
    assert world.condition("Ready").reason == "RestartBudgetExhausted"
    assert "out of memory" in world.condition("Ready").message
    assert not world.pods and world.reasons().count("RestartBudgetExhausted") == 1
    # Once the window has passed it is tried again.
    world.broken = set()
    world.tick(3600)
    world.run(20)
    assert world.condition("Ready").status == "True" and world.condition("Degraded").status == "False"


def test_a_new_spec_does_not_wait_for_the_budget_of_the_old() -> None:
    world = World(restart={"budget": 1, "backoffSeconds": 10})
    world.broken = {world.decide().status.revision}
    world.run(60)
    assert world.condition("Degraded").reason == "RestartBudgetExhausted"
    world.change(server={"maxSequences": 4})
    world.run(20)
    assert world.condition("Ready").status == "True"


def test_a_lost_status_is_found_again_from_the_pods() -> None:
    world = formed()
    pods = dict(world.pods)
    del world.body["status"]
    world.run(5)
    assert world.pods == pods
    assert world.condition("Ready").status == "True" and world.status.epoch == 1


def test_an_unready_member_is_no_loss() -> None:
    world = formed()
    pod = world.pods[WORKER]
    world.loading = True
    world.alter(WORKER, ready=False, server=replace(pod.server, ready=False))
    world.run(3)
    assert world.group(0).restarts == 0 and world.condition("Ready").status == "False"
    world.loading = False
    world.run(3)
    assert world.condition("Ready").status == "True"
