"""Deleting the deployment: everything drains, the finalizer has a time limit, drift is repaired until then."""

from typing import Any

from operator_support.world import World

from oarlock_operator.api import names
from oarlock_operator.decide.actions import Apply, Delete, Prune
from oarlock_operator.decide.drift import covers
from oarlock_operator.render.settings import RenderSettings


def test_all_groups_drain_then_the_finalizer_goes() -> None:
    world = World(replicas=2, parallelism={"nodes": 2}, drain={"timeoutSeconds": 20})
    world.run(20)
    world.delete()
    world.reconcile()
    assert all(pod.deleting is (pod.rank == 0) for pod in world.pods.values())
    assert world.condition("Ready").reason == "Deleting"
    world.run(60)
    assert not world.pods and world.body["metadata"]["finalizers"] == []


def test_a_dead_node_does_not_hold_the_finalizer() -> None:
    world = World(drain={"timeoutSeconds": 20})
    world.run(20)
    world.alter("llm-0-e1-0", node="dead")
    world.delete()
    world.run(90)
    assert world.pods and world.body["metadata"]["finalizers"] == []


def test_without_our_finalizer_nothing_is_done() -> None:
    world = World()
    world.run(20)
    world.body["metadata"]["finalizers"] = []
    world.delete()
    assert world.decide().actions == ()


def test_the_finalizer_comes_first() -> None:
    world = World()
    world.body["metadata"]["finalizers"] = []
    world.run(2)
    assert world.body["metadata"]["finalizers"] == [names.FINALIZER]


def _service(world: World) -> dict[str, Any]:
    found: Any = world.objects["Service", "llm"]
    return dict(found)


def test_drift_is_repaired() -> None:
    world = World()
    world.run(20)
    right = _service(world)
    wrong = {**right, "spec": {**right["spec"], "selector": {names.DEPLOYMENT: "other", "more": "x"}}}
    world.objects["Service", "llm"] = wrong
    actions = world.decide().actions
    assert Apply(right) in actions
    assert Prune("Service", "llm", {"spec": {"selector": {"more": None}}}) in actions
    world.reconcile()
    assert _service(world) == right and "DriftRepaired" in world.reasons()
    del world.objects["PodDisruptionBudget", "llm"]
    world.reconcile()
    assert ("PodDisruptionBudget", "llm") in world.objects


def test_what_is_no_longer_wanted_goes() -> None:
    world = World()
    world.run(5)
    world.objects["NetworkPolicy", "llm"] = {"kind": "NetworkPolicy", "metadata": {"name": "llm", "uid": "u"}}
    assert world.decide().actions == (Delete("NetworkPolicy", "llm", "u"),)


def test_what_the_server_fills_in_is_no_drift() -> None:
    wanted = {"spec": {"ports": [{"port": 1}], "storage": "1Gi"}}
    observed = {"spec": {"ports": [{"port": 1, "nodePort": 3}], "storage": "1024Mi", "clusterIP": "10.0.0.1"}}
    assert covers(observed, wanted)
    assert not covers({"spec": {"ports": [{"port": 2}], "storage": "1Gi"}}, wanted)


def test_a_group_has_a_policy_as_long_as_it_is_there() -> None:
    world = World(drain={"timeoutSeconds": 20})
    world.settings = RenderSettings(network_policy=True)
    world.run(5)
    assert {name for kind, name in world.objects if kind == "NetworkPolicy"} == {"llm", "llm-group-0"}
    world.change(replicas=2)
    world.run(10)
    assert ("NetworkPolicy", "llm-group-1") in world.objects
    world.change(replicas=1)
    world.run(60)
    assert ("NetworkPolicy", "llm-group-1") not in world.objects
    assert "DriftRepaired" not in world.reasons()
    del world.objects["NetworkPolicy", "llm-group-0"]
    world.reconcile()
    assert ("NetworkPolicy", "llm-group-0") in world.objects and "DriftRepaired" in world.reasons()
