"""A ModelDeployment's life on a real cluster, as a user meets it. Each test goes on from the last."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from e2e_support import ROOT, SYSTEM
from e2e_support.callers import nothing_failed, traffic
from e2e_support.deployment import ADDED, CHART, MD, MEMORY, OPERATOR, deployment, older_chart
from e2e_support.kube import Kube
from e2e_support.shelf import Shelf
from e2e_support.weights import WeightServer

from cluster.machine import Cluster

RUNTIME = ROOT / "runtime"


KILLED = pytest.mark.parametrize("operator_dies", [False, True], ids=["operator lives", "operator killed"])


def kill_operators(kube: Kube) -> None:
    """SIGKILL to every operator process: nothing is given back, nobody is told."""
    kube.run(
        "kubectl",
        "-n",
        SYSTEM,
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=oarlock-operator",
        "--force",
        "--grace-period=0",
    )


def change_address(cluster: Cluster | None, pod: dict[str, Any]) -> None:
    """Ends the sandbox that holds the pod's network: the kubelet makes another, with another address."""
    if cluster is None:
        pytest.skip("the nodes of a cluster that isn't ours are left alone")
    node = next(node for node in cluster.nodes if node.name == pod["spec"]["nodeName"])
    wanted = f'labels."io.kubernetes.pod.uid"=={pod["metadata"]["uid"]},labels."io.cri-containerd.kind"==sandbox'
    sandbox = node.ctr("containers", "list", "--quiet", wanted).split()[0]
    node.ctr("tasks", "kill", "--signal", "SIGKILL", sandbox)


def known_fields(kube: Kube) -> dict[str, Any]:
    """Those of spec.scheduling that the API server's definition has."""
    definition = kube.get("crd", "modeldeployments.serving.oarlock.dev")
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return dict(spec["properties"]["scheduling"]["properties"])


def test_install(kube: Kube, tmp_path: Path) -> None:
    chart = older_chart(tmp_path)  # upgraded later on
    said = kube.helm(SYSTEM, "install", "oarlock", chart)
    assert ADDED not in known_fields(kube)
    assert "kubectl apply -f examples/smollm2.yaml" in said


def test_bad_specs_are_refused(kube: Kube, weights: WeightServer) -> None:
    for spec, message in (
        ({"rollout": {"maxSurge": 0}}, "no group could ever be replaced"),
        ({"model": {"source": "ftp://x"}}, "model.source must be hf://"),
        ({"parallelism": {"gpusPerNode": 1}, "sharedMemory": "1Gi"}, "sharedMemory must be at least 5Gi"),
    ):
        assert message in kube.apply(deployment(weights.url, **spec), check=False)


def test_an_unreachable_source_is_said(kube: Kube, weights: WeightServer) -> None:
    weights.missing = True
    kube.apply(deployment(weights.url))
    kube.until("the failure is said", lambda: kube.condition(MD, "Ready").get("reason") == "DownloadFailed", 60)
    assert weights.url in kube.condition(MD, "ModelCached")["message"]


def test_it_recovers_with_progress_and_becomes_ready(kube: Kube, weights: WeightServer) -> None:
    weights.missing = False

    def halfway() -> bool:
        download = kube.status(MD).get("download") or {}
        return download.get("bytes", 0) > 0 and download.get("rate", 0) > 0

    kube.until("progress is shown", halfway, 120)
    kill_operators(kube)  # another one goes on
    kube.until("it is ready", lambda: kube.ready(MD), 180)
    weights.rate = 200_000_000  # slowness has been shown
    table = kube.kubectl("get", "md")
    assert re.search(r"smollm2\s+True\s+Serving\s+1\s+1", table), table
    assert kube.pods(MD)[0]["metadata"]["name"].startswith(f"{MD}-0-e1-")


def test_a_chat_streams_through_the_service(kube: Kube) -> None:
    with traffic(kube, threads=1) as counts:
        pass
    nothing_failed(counts)


def test_the_memory_limit_is_the_kernels(kube: Kube) -> None:
    """Of cgroups of both versions."""
    read = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes"
    pod = kube.pods(MD)[0]["metadata"]["name"]
    assert int(kube.kubectl("exec", pod, "-c", "server", "--", "sh", "-c", read)) == MEMORY


@pytest.mark.conformance(31, 32)
def test_an_exported_paddle_directory_is_served(kube: Kube, shelf: Shelf) -> None:
    name = "oarlock/Tiny-Llama/weight_only_int8"
    oarlock = [sys.executable, "-m", "oarlock_runtime.cli", "model"]
    random = str(shelf.folder / "random")
    export = ["--to", "paddle", "--quant-type", "weight_only_int8", "--ranks", "2", "-o", str(shelf.place(name))]
    for arguments in (["random", "tiny-llama", "--to", "safetensors", "-o", random], ["export", random, *export]):
        subprocess.run([*oarlock, *arguments], check=True, timeout=120, env={**os.environ, "PYTHONPATH": str(RUNTIME)})
    shelf.list_files(name)
    body = deployment(f"paddle://{name}", env=[{"name": "PADDLE_MODELS_URL", "value": shelf.url}])
    body["metadata"]["name"] = "paddle"
    kube.apply(body)
    kube.until("it is ready", lambda: kube.ready("paddle"), 180)
    ask = (
        "import json, urllib.request; "
        "body = json.dumps({'input_ids': [5, 6, 7], 'max_dec_len': 4, 'topp': 0}).encode(); "
        "asked = urllib.request.Request('http://127.0.0.1:9965/v1/chat/completions', body, "
        "{'content-type': 'application/json'}); print(urllib.request.urlopen(asked, timeout=30).read().decode())"
    )
    pod = kube.pods("paddle")[0]["metadata"]["name"]
    answer = json.loads(kube.kubectl("exec", pod, "-c", "server", "--", "python", "-c", ask))
    assert answer["error_code"] == 0 and answer["result"]
    kube.kubectl("delete", "md", "paddle", "--wait=true")


@KILLED
def test_scaling_loses_no_request(kube: Kube, operator_dies: bool) -> None:
    with traffic(kube) as counts:
        kube.kubectl("scale", "modeldeployment", MD, "--replicas=2")
        if operator_dies:
            kill_operators(kube)
        kube.until("both serve", lambda: kube.status(MD).get("readyReplicas") == 2, 120)
        kube.kubectl("scale", "modeldeployment", MD, "--replicas=1")
        if operator_dies:
            kill_operators(kube)
        kube.until("one has left", lambda: len(kube.pods(MD)) == 1 and len(kube.status(MD)["groups"]) == 1, 120)
    nothing_failed(counts)


@KILLED
def test_an_update_loses_no_request(kube: Kube, operator_dies: bool) -> None:
    before = kube.uids(MD)
    patch = json.dumps({"spec": {"server": {"maxSequences": 7 if operator_dies else 8}}})
    with traffic(kube) as counts:
        kube.kubectl("patch", "modeldeployment", MD, "--type=merge", "-p", patch)
        if operator_dies:
            kube.until("the new group is begun", lambda: kube.uids(MD) - before, 60)
            kill_operators(kube)
        kube.until("the update is done", lambda: kube.ready(MD) and not (kube.uids(MD) & before), 180)
    nothing_failed(counts)


def test_a_restarted_operator_changes_no_pod(kube: Kube) -> None:
    before = {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in kube.pods(MD)}
    kill_operators(kube)
    time.sleep(2)
    # Its successor is at work once it repairs something.
    kube.kubectl("delete", "poddisruptionbudget", MD)
    kube.until("drift is repaired", lambda: MD in kube.kubectl("get", "poddisruptionbudgets"), 40)
    assert {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in kube.pods(MD)} == before


def test_the_api_server_refuses_whoever_does_not_lead(kube: Kube) -> None:
    system = ("kubectl", "-n", SYSTEM)
    selector = ("-l", "app.kubernetes.io/name=oarlock-operator", "-o", "name")

    def operators() -> list[str]:
        return [name.removeprefix("pod/") for name in kube.run(*system, "get", "pods", *selector).split()]

    def holder() -> str:
        return kube.run(*system, "get", "lease", OPERATOR, "-o", "jsonpath={.spec.holderIdentity}")

    def leaders() -> list[str]:
        return [name for name in operators() if holder().startswith(f"{name}-")]

    kube.until("two operators, one leads", lambda: len(operators()) == 2 and len(leaders()) == 1, 60)
    leader = leaders()[0]
    said = {}
    for name in operators():
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={name}")
        token = kube.run(*system, "create", "token", OPERATOR, *bound).strip()
        # What a leader would write that was frozen while another took over.
        said[name] = kube.kubectl(f"--token={token}", "annotate", "md", MD, f"test/{name}=x", check=False)
    assert f"modeldeployment.serving.oarlock.dev/{MD} annotated" in said.pop(leader)
    assert "does not hold the operator's lease" in said.popitem()[1]


def test_two_members_on_two_nodes(kube: Kube) -> None:
    patch = json.dumps({"spec": {"parallelism": {"nodes": 2}}})
    kube.kubectl("patch", "modeldeployment", MD, "--type=merge", "-p", patch)
    kube.until("two members serve", lambda: kube.ready(MD) and len(kube.pods(MD)) == 2, 180)
    pods = sorted(kube.pods(MD), key=lambda pod: str(pod["metadata"]["name"]))
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    rosters = {pod["metadata"]["annotations"]["serving.oarlock.dev/pod-ips"] for pod in pods}
    assert rosters == {",".join(pod["status"]["podIP"] for pod in pods)}
    leader = pods[0]["metadata"]["name"]
    seen = kube.kubectl("exec", leader, "-c", "server", "--", "python", "-c", "import os; print(os.environ['POD_IPS'])")
    assert seen.strip() in rosters


@KILLED
@pytest.mark.parametrize("loss", ["process", "pod", "address"])
def test_losing_a_member_remakes_the_group(kube: Kube, cluster: Cluster | None, loss: str, operator_dies: bool) -> None:
    before, status = kube.uids(MD), kube.status(MD)
    worker = next(pod for pod in kube.pods(MD) if pod["metadata"]["labels"]["serving.oarlock.dev/rank"] == "1")
    name = worker["metadata"]["name"]
    if loss == "process":
        kube.kubectl(
            "exec", name, "-c", "server", "--", "python", "-c", f"import os; os.kill(1, {int(signal.SIGTERM)})"
        )
    elif loss == "pod":
        kube.kubectl("delete", "pod", name, "--wait=false", "--grace-period=1")
    else:
        change_address(cluster, worker)
    if operator_dies:
        kill_operators(kube)

    def remade() -> bool:
        now = kube.uids(MD)
        return kube.ready(MD) and len(now) == 2 and not (now & before)

    kube.until("the group is remade", remade, 120)
    group, old = kube.status(MD)["groups"][0], status["groups"][0]
    assert group["restarts"] == old["restarts"] + 1 and group["epoch"] > old["epoch"]
    # Rank 0 of a split model may notice first: it says which rank it lost, by its address.
    told = group["lastRestartReason"]
    assert name in told or worker["status"]["podIP"] in told


def test_a_restarted_api_server_loses_nothing(kube: Kube, cluster: Cluster | None) -> None:
    if cluster is None:
        pytest.skip("the API server of a cluster that isn't ours is left alone")
    before = kube.uids(MD)
    cluster.processes.stop(["kube-apiserver"])
    time.sleep(3)
    cluster.plane.start_api_server()
    cluster.plane.wait()
    kube.kubectl("delete", "poddisruptionbudget", MD)
    kube.until("the operator is at work", lambda: MD in kube.kubectl("get", "poddisruptionbudgets"), 60)
    kube.until("it is ready", lambda: kube.ready(MD), 60)
    assert kube.uids(MD) == before


def test_upgrade(kube: Kube) -> None:
    before = kube.uids(MD)
    kube.helm(SYSTEM, "upgrade", "oarlock", CHART, "--set", "logLevel=debug")
    assert kube.uids(MD) == before
    assert ADDED in known_fields(kube)


def test_delete_takes_everything(kube: Kube) -> None:
    kube.kubectl("delete", "modeldeployment", MD, "--wait=false")
    kill_operators(kube)
    kube.until("it is gone", lambda: not kube.get("modeldeployments")["items"], 120)
    kinds = "pods,services,poddisruptionbudgets,persistentvolumeclaims"
    selector = f"serving.oarlock.dev/deployment={MD}"
    kube.until("all is gone", lambda: not kube.get(kinds, "-l", selector)["items"], 60)


def test_uninstall_leaves_nothing_hanging(kube: Kube, weights: WeightServer) -> None:
    kube.apply(deployment(weights.url))
    kube.until("it has our finalizer", lambda: kube.get("modeldeployment", MD)["metadata"].get("finalizers"), 30)
    kube.helm(SYSTEM, "uninstall", "oarlock")
    kube.kubectl("delete", "modeldeployment", MD, "--timeout=30s")
    left = kube.run("kubectl", "-n", SYSTEM, "get", "all,serviceaccounts,roles,rolebindings,leases", "-o", "name")
    assert not [name for name in left.split() if "oarlock" in name]
