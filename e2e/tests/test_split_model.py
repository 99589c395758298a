"""A model split over pods of two nodes: it serves as one, and whatever happens to a rank happens to all of them.

Each test goes on from the last. Faults are made from outside the pods, as a kernel or a network makes them.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support import SYSTEM
from e2e_support.callers import everybody_was_answered, nothing_failed, traffic
from e2e_support.deployment import CHART, MD, deployment
from e2e_support.kube import Kube
from e2e_support.weights import WeightServer

from cluster.machine import Cluster
from cluster.nodes import Node
from cluster.processes import run

READY_FALSE_SECONDS = 10.0
ENDED_SECONDS = 15.0
MODULES = ("engine_process", "worker_process")  # by rank


@pytest.fixture(scope="module", autouse=True)
def installed(kube: Kube, weights: WeightServer) -> Iterator[None]:
    """The chart, and a ModelDeployment of two nodes that serves."""
    weights.missing, weights.rate = False, 200_000_000
    kube.helm(SYSTEM, "install", "oarlock", CHART)
    kube.apply(deployment(weights.url, parallelism={"nodes": 2}))
    kube.until("two ranks serve", lambda: kube.ready(MD) and len(kube.pods(MD)) == 2, 180)
    yield
    kube.kubectl("delete", "modeldeployment", MD, "--timeout=90s")
    kube.helm(SYSTEM, "uninstall", "oarlock")


def by_rank(kube: Kube) -> list[dict[str, Any]]:
    return sorted(kube.pods(MD), key=lambda pod: int(pod["metadata"]["labels"]["serving.oarlock.dev/rank"]))


def processes() -> dict[int, tuple[str, str]]:
    """Pod's uid and command line of every process of a server on this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().replace("\0", " ") if entry.name.isdigit() else ""
            pod = re.search(r"/oark/.*pod([0-9a-f-]{36})", (entry / "cgroup").read_text()) if words else None
        except OSError:
            continue  # it has ended
        if pod and "oarlock" in words and "oarlock-operator" not in words:
            found[int(entry.name)] = (pod[1], words)
    return found


def process_of(kube: Kube, rank: int) -> int:
    """Process id, on this machine, of the one that computes as rank `rank`."""
    uid = by_rank(kube)[rank]["metadata"]["uid"]
    module = f"oarlock_runtime.server.{MODULES[rank]}"
    (pid,) = [pid for pid, (pod, words) in processes().items() if pod == uid and module in words]
    return pid


def kill(kube: Kube, rank: int) -> None:
    os.kill(process_of(kube, rank), signal.SIGKILL)


def stop(kube: Kube, rank: int) -> None:
    os.kill(process_of(kube, rank), signal.SIGSTOP)


def delete(kube: Kube, rank: int) -> None:
    name = by_rank(kube)[rank]["metadata"]["name"]
    kube.kubectl("delete", "pod", name, "--wait=false", "--grace-period=1")


def part(nodes: list[Node]) -> None:
    """What the pods of one node send to those of the other is lost; both still reach the API server."""
    for node, other in zip(nodes, reversed(nodes), strict=True):
        run("ip", "-n", node.namespace, "route", "replace", "blackhole", other.pods)


def heal(nodes: list[Node]) -> None:
    for node, other in zip(nodes, reversed(nodes), strict=True):
        run("ip", "-n", node.namespace, "route", "replace", other.pods, "via", other.address)


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def nobody_serves(kube: Kube, before: set[str]) -> bool:
    return not any(is_ready(pod) for pod in kube.pods(MD) if pod["metadata"]["uid"] in before)


def it_fails_and_recovers(kube: Kube, fault: Callable[[], None], mend: Callable[[], None] = lambda: None) -> None:
    """Under constant traffic from the leader's node: both pods not ready in time, then a new group that serves."""
    before, status = kube.uids(MD), kube.status(MD)["groups"][0]
    old = {pid for pid, (uid, _) in processes().items() if uid in before}
    with traffic(kube, node=by_rank(kube)[0]["spec"]["nodeName"]) as counts:
        begin = time.monotonic()
        fault()
        try:
            not_ready = kube.until("nobody is ready", lambda: nobody_serves(kube, before), 2 * READY_FALSE_SECONDS)
            kube.until("all processes have ended", lambda: not old & processes().keys(), 3 * ENDED_SECONDS)
            ended = time.monotonic() - begin
        finally:
            mend()

        def remade() -> bool:
            now = kube.uids(MD)
            return kube.ready(MD) and len(now) == 2 and not (now & before)

        kube.until("the group is remade", remade, 120)
        again = time.monotonic() - begin
    print(f"not ready after {not_ready:.1f} s, all ended after {ended:.1f} s, serving after {again:.1f} s", counts)
    everybody_was_answered(counts)
    group = kube.status(MD)["groups"][0]
    assert group["epoch"] > status["epoch"]
    assert {uid for uid, _ in processes().values()} <= kube.uids(MD)
    assert not_ready < READY_FALSE_SECONDS and ended < ENDED_SECONDS


def test_two_ranks_on_two_nodes_answer(kube: Kube, cluster: Cluster | None) -> None:
    pods = by_rank(kube)
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    said = [kube.kubectl("logs", pod["metadata"]["name"], "-c", "server") for pod in pods]
    assert "rank 1 of 2" in said[1]
    if cluster is not None:
        assert {MODULES[rank] for rank in range(2) if process_of(kube, rank)} == set(MODULES)
    with traffic(kube) as counts:
        time.sleep(3)
    nothing_failed(counts)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", [kill, stop, delete])
def test_what_happens_to_a_rank_happens_to_all(
    kube: Kube, cluster: Cluster | None, fault: Callable[[Kube, int], None], rank: int
) -> None:
    if cluster is None and fault is not delete:
        pytest.skip("the processes of a cluster that isn't ours are left alone")
    it_fails_and_recovers(kube, lambda: fault(kube, rank))


def test_nodes_that_lose_each_other(kube: Kube, cluster: Cluster | None) -> None:
    if cluster is None:
        pytest.skip("the network of a cluster that isn't ours is left alone")
    it_fails_and_recovers(kube, lambda: part(cluster.nodes), lambda: heal(cluster.nodes))
