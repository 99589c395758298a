"""From nothing to a serving group: creation, roster, conditions on the way, and what doesn't count as a failure."""

from dataclasses import replace

import pytest
from operator_support.world import World

from oarlock_operator.decide.snapshot import Progress


def test_one_group_forms_and_serves() -> None:
    world = World(parallelism={"nodes": 2})
    world.run(20)
    assert sorted(world.pods) == ["llm-0-e1-0", "llm-0-e1-1"]
    ips = [world.pods[f"llm-0-e1-{rank}"].ip for rank in (0, 1)]
    assert {pod.roster_ips for pod in world.pods.values()} == {",".join(ips)}
    assert world.condition("Ready").status == "True" and world.condition("Ready").reason == "Serving"
    assert world.condition("Progressing").reason == "Complete"
    assert world.condition("ModelCached").reason == "Downloaded"
    assert world.condition("Degraded").status == "False"
    assert world.status.ready_replicas == world.status.replicas == world.status.updated_replicas == 1
    assert [member.state for member in world.group(0).members] == ["Ready", "Ready"]
    assert world.reasons() == ["GroupCreated", "GroupFormed", "GroupReady", "RolloutComplete"]


def test_steady_state_writes_nothing() -> None:
    world = World(replicas=3, parallelism={"nodes": 2})
    world.run(30)
    before = world.writes
    world.run(30)
    assert world.writes == before


def test_the_roster_waits_for_every_download() -> None:
    world = World(parallelism={"nodes": 2})
    world.downloading = True
    world.run(20)
    assert not any(pod.formed for pod in world.pods.values())
    assert world.condition("Ready").reason == "Downloading"
    assert world.condition("ModelCached").reason == "Downloading"
    world.downloading = False
    world.run(10)
    assert world.condition("Ready").status == "True"


def test_long_pulls_and_downloads_are_no_failure() -> None:
    world = World()
    world.downloading = True
    for _ in range(10):
        world.run(2)
        world.tick(seconds=3600)
    assert world.group(0).restarts == 0 and list(world.pods) == ["llm-0-e1-0"]
    assert world.condition("Progressing").status == "True"


def test_progress_names_the_slowest() -> None:
    world = World(parallelism={"nodes": 2})
    world.downloading = True
    world.run(5)
    world.progress = {"llm-0-e1-0": Progress(50, 100, 10), "llm-0-e1-1": Progress(10, 100, 10)}
    decision = world.reconcile()
    assert set(decision.downloading) == {"llm-0-e1-0", "llm-0-e1-1"} and decision.wake_after == 3.0
    download = world.status.download
    assert download is not None
    assert (download.bytes, download.total, download.rate, download.remaining_seconds) == (60, 200, 20, 9)
    assert download.slowest_member == "llm-0-e1-1"
    assert download.summary == "30% of 200 B, 20 B/s, 9 s left"
    world.downloading = False
    world.run(10)
    assert world.status.download is None


def test_a_member_lost_while_forming_is_made_again_without_ending_the_epoch() -> None:
    world = World(parallelism={"nodes": 2})
    world.downloading = True
    world.run(5)
    world.remove("llm-0-e1-1")
    world.run(3)
    assert sorted(world.pods) == ["llm-0-e1-0", "llm-0-e1-1"]
    world.alter("llm-0-e1-1", phase="Failed", reason="Evicted")
    world.run(10)
    assert world.pods["llm-0-e1-1"].phase == "Pending" and world.group(0).restarts == 0


def test_no_capacity_is_said() -> None:
    world = World()
    world.scheduling = False
    world.run(3)
    ready = world.condition("Ready")
    assert ready.reason == "InsufficientCapacity" and "0/2 nodes" in ready.message
    assert "InsufficientCapacity" in world.reasons()


def test_a_failed_download_tells_what_happened_and_recovers() -> None:
    world = World()
    world.downloading = True
    world.run(4)
    pod = world.pods["llm-0-e1-0"]
    said = "http://10.0.0.9/m.gguf answered 404"
    failed = replace(pod.init[0], running=False, exit_code=1, exit_message=said, waiting_reason="CrashLoopBackOff")
    world.alter(pod.name, init=(failed, *pod.init[1:]))
    world.reconcile()
    for kind in ("Ready", "ModelCached"):
        assert world.condition(kind).reason == "DownloadFailed" and said in world.condition(kind).message
    assert world.condition("Degraded").status == "True" and world.reasons().count("DownloadFailed") == 1
    # While it is tried again that is what is said, though the kubelet still tells how the last attempt ended.
    world.alter(pod.name, init=(replace(failed, waiting_reason="", running=True), *pod.init[1:]))
    assert world.reconcile().downloading == (pod.name,)
    assert world.condition("Ready").reason == "Downloading" and world.condition("Degraded").status == "False"
    world.downloading = False
    world.run(10)
    assert world.condition("Ready").status == "True" and world.group(0).restarts == 0


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        ("ImagePullBackOff", "ImagePullFailed"),
        ("ErrImagePull", "ImagePullFailed"),
        ("CreateContainerConfigError", "ContainerCreationFailed"),
        ("RunContainerError", "ContainerCreationFailed"),
    ],
)
def test_what_keeps_a_container_from_starting_is_said(waiting: str, reason: str) -> None:
    world = World()
    world.run(2)
    pod = world.pods["llm-0-e1-0"]
    trouble = replace(pod.init[0], waiting_reason=waiting, waiting_message="no such thing")
    world.alter(pod.name, node="n0", init=(trouble, *pod.init[1:]))
    world.reconcile()
    for kind in ("Ready", "Degraded"):
        assert world.condition(kind).reason == reason and "no such thing" in world.condition(kind).message
    assert world.reasons().count(reason) == 1


def test_scaled_to_zero_is_ready() -> None:
    world = World(replicas=0)
    world.run(3)
    assert world.condition("Ready").reason == "ScaledToZero" and not world.pods


def test_host_path_is_refused_by_default() -> None:
    world = World(model={"source": "/m", "hostPath": "/data"})
    world.run(3)
    assert world.condition("Ready").reason == "InvalidSpec" and "hostPath" in world.condition("Ready").message
    assert not world.pods and world.reasons() == ["InvalidSpec"]
    world.settings = replace(world.settings, allow_host_path=True)
    world.run(15)
    assert world.condition("Ready").status == "True"


def test_refused_pods_are_said() -> None:
    world = World()
    world.refused = "pods is forbidden: exceeded quota"
    world.run(2)
    assert world.condition("Ready").reason == world.condition("Degraded").reason == "PodsRefused"
    assert "exceeded quota" in world.condition("Ready").message and "PodsRefused" in world.reasons()
