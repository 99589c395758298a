"""How fast the operator is with many ModelDeployments: a real API server, scheduler and controller manager; kwok plays
the nodes and their pods. Prints two tables, for all of them created in one burst, and for some of those that stand
being scaled up, a few a second: how long that takes, reconcile p50 and p99 (observe to last write; queueing apart),
API requests per object, CPU time and memory, and what a quiet time costs.

    cd e2e && python -m bench.reconcile --objects 1 100 1000

The bench itself keeps its connections, and looks seldom whether many objects are ready: both would be work for the API
server's cores, which are the operator's as well.
"""

import argparse
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from cluster.control_plane import ADMIN, ControlPlane, free_port
from cluster.processes import Processes, wait_for
from cluster.versions import bin_dir

ROOT = Path(__file__).resolve().parents[2]
PODS_PER_NODE = 100
_GROUP = "apis/serving.oarlock.dev/v1alpha1"
_STEADY_SECONDS = 125.0  # a listing is in it
_SCALED, _SCALED_PER_SECOND = 200, 4.0


class Bench:
    """One API server with kwok's nodes and the operator."""

    def __init__(self, folder: Path) -> None:
        self.plane = ControlPlane(folder)
        self.processes: Processes = self.plane.processes
        self.port = free_port()
        self._trust: ssl.SSLContext | None = None
        self._mine = threading.local()  # a connection for each thread

    def start(self, nodes: int) -> None:
        self.plane.start((ADMIN,))
        self._trust = ssl.create_default_context(cafile=str(self.plane.pki.ca))
        config = self.plane.kubeconfig
        key = self.plane.pki.folder / "sa.key"
        self.processes.start(
            "kube-controller-manager",
            [
                bin_dir() / "kube-controller-manager", "--kubeconfig", config, "--leader-elect=false",
                "--service-account-private-key-file", key, "--root-ca-file", self.plane.pki.ca,
                "--kube-api-qps", "500", "--kube-api-burst", "1000", "--secure-port", "0",
            ],
        )  # fmt: skip
        self.processes.start(
            "kube-scheduler",
            [
                bin_dir() / "kube-scheduler", "--kubeconfig", config, "--leader-elect=false",
                "--kube-api-qps", "500", "--kube-api-burst", "1000", "--secure-port", "0",
            ],
        )  # fmt: skip
        self.processes.start(
            "kwok", [
                bin_dir() / "kwok", "--kubeconfig", config, "--manage-all-nodes=true", "--enable-crds=",
                "--node-lease-duration-seconds=40",  # or its nodes would be taken for dead
            ]
        )  # fmt: skip
        crd = yaml.safe_load((ROOT / "crds" / "modeldeployments.yaml").read_text())
        self.request("POST", "apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        for number in range(nodes):
            self.request("POST", "api/v1/nodes", _node(f"fake-{number}"))
        self.request("POST", "api/v1/namespaces", {"metadata": {"name": "bench"}})

        def served() -> bool:
            try:
                self.request("GET", f"{_GROUP}/namespaces/bench/modeldeployments")
                return bool(self.request("GET", "api/v1/namespaces/bench/serviceaccounts")["items"])
            except OSError:
                return False

        wait_for("the kind is served", served, 30)
        self.processes.start(
            "operator",
            [
                "env", f"PYTHONPATH={ROOT / 'operator'}", f"KUBECONFIG={config}", sys.executable, "-m",
                "oarlock_operator.cli", "run", "--no-leader-election", "--host", "127.0.0.1", "--port", str(self.port),
                "--log-level", "warning",
            ],
        )  # fmt: skip
        wait_for(
            "the operator is up", lambda: bool(self._metrics_or_none()), 30, lambda: self.processes.tail("operator")
        )

    def request(self, method: str, path: str, data: Any = None, content_type: str = "application/json") -> Any:
        headers = {"Authorization": "Bearer admin-token", "Content-Type": content_type}
        body = json.dumps(data) if data is not None else None
        status, content = 0, b""
        for last in (False, True):  # the server may have ended a connection that was idle for long
            connection = getattr(self._mine, "connection", None)
            if connection is None:
                address = urllib.parse.urlsplit(self.plane.url).netloc
                self._mine.connection = connection = http.client.HTTPSConnection(
                    address, timeout=30, context=self._trust
                )
            try:
                connection.request(method, f"/{path}", body, headers)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                if last:
                    raise
        if status >= 400:
            raise OSError(f"{method} {path}: {content[:500].decode(errors='replace')}")
        return json.loads(content)

    def _metrics_or_none(self) -> str | None:
        try:
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    def metrics(self) -> dict[str, float]:
        """Series to value."""
        text = self._metrics_or_none() or ""
        return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.M)}

    def memory(self) -> float:
        """Resident memory of the operator in MB."""
        status = Path(f"/proc/{self.processes.pid('operator')}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        return int(match[1]) / 1024 if match else 0.0

    def cpu(self, name: str = "operator") -> float:
        """CPU time in seconds that the process has used."""
        fields = Path(f"/proc/{self.processes.pid(name)}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def create(self, count: int) -> float:
        """Makes `count` deployments and waits until all are ready; seconds from the first."""
        begin = time.monotonic()

        def make(number: int) -> None:
            spec = {"model": {"source": "/models/m"}, "replicas": 1}
            body = {
                "apiVersion": "serving.oarlock.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": f"md-{number}"},
                "spec": spec,
            }
            self.request("POST", f"{_GROUP}/namespaces/bench/modeldeployments", body)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(make, range(count)))
        wait_for(
            "all are ready", lambda: self._ready(count) == count, 60 + count, lambda: self.processes.tail("operator")
        )
        return time.monotonic() - begin

    def scale(self, count: int) -> float:
        """Gives the first `count` one group more each, and waits until all serve; seconds from the first."""
        begin = time.monotonic()
        for number in range(count):
            where = f"{_GROUP}/namespaces/bench/modeldeployments/md-{number}"
            self.request("PATCH", where, {"spec": {"replicas": 2}}, "application/merge-patch+json")
            time.sleep(max(0.0, begin + (number + 1) / _SCALED_PER_SECOND - time.monotonic()))

        def serving() -> bool:
            time.sleep(_look_seconds(count))
            items = self.request("GET", f"{_GROUP}/namespaces/bench/modeldeployments")["items"]
            return bool(sum(item["status"].get("readyReplicas") == 2 for item in items) == count)

        wait_for("all are scaled", serving, 60 + count, lambda: self.processes.tail("operator"))
        return time.monotonic() - begin

    def _ready(self, count: int) -> int:
        time.sleep(_look_seconds(count))
        items = self.request("GET", f"{_GROUP}/namespaces/bench/modeldeployments")["items"]
        conditions = [one for item in items for one in item.get("status", {}).get("conditions", [])]
        return sum(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _look_seconds(count: int) -> float:
    """How long to wait between two listings of so many."""
    return max(0.5, count / 200)


def _node(name: str) -> dict[str, Any]:
    room = {"cpu": "64", "memory": "512Gi", "pods": str(PODS_PER_NODE)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"type": "kwok"}},
        "status": {"allocatable": room, "capacity": room},
    }


_SECONDS = "oarlock_operator_reconcile_seconds"
_QUEUE = "oarlock_operator_queue_seconds"
_WRITES = ("POST", "PUT", "PATCH", "DELETE")


def percentile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float:
    """The upper end of the histogram's bucket in which this share of observations is reached, in seconds."""
    buckets = sorted(
        (float(match[1]), value - before.get(series, 0.0))
        for series, value in after.items()
        if (match := re.fullmatch(rf'{name}_bucket\{{le="(.+)"\}}', series))
    )
    wanted = buckets[-1][1] * share
    return next(bound for bound, value in buckets if value >= wanted)


def _requests(before: dict[str, float], after: dict[str, float], *verbs: str) -> float:
    found = re.compile(r"oarlock_operator_api_requests_total\{.*verb=\"(\w+)\"")
    return sum(
        value - before.get(series, 0.0)
        for series, value in after.items()
        if (match := found.match(series)) and (not verbs or match[1] in verbs)
    )


def _rounds(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Count, p50, p99 and the queue's p99."""
    count = after[f"{_SECONDS}_count"] - before[f"{_SECONDS}_count"]
    shares = [(_SECONDS, 0.5), (_SECONDS, 0.99), (_QUEUE, 0.99)]
    return [f"{count:.0f}", *(f"{1000 * percentile(before, after, name, share):.0f}" for name, share in shares)]


def measure(count: int) -> tuple[str, str]:
    """A row of each table."""
    scaled = min(count, _SCALED)
    with tempfile.TemporaryDirectory(prefix="oarlock-bench-") as folder:
        bench = Bench(Path(folder))
        try:
            bench.start(nodes=(count + scaled) // PODS_PER_NODE + 1)
            before, cpu = bench.metrics(), bench.cpu()
            seconds = bench.create(count)
            after, cpu = bench.metrics(), bench.cpu() - cpu
            memory = bench.memory()
            time.sleep(5)
            quiet = bench.metrics()
            time.sleep(_STEADY_SECONDS)
            later = bench.metrics()
            scaling = bench.scale(scaled)
            last = bench.metrics()
            most = bench.memory()
        finally:
            bench.plane.stop()
    burst = [
        f"{count}",
        f"{seconds:.1f}",
        *_rounds(before, after),
        f"{_requests(before, after) / count:.1f}",
        f"{1000 * cpu / count:.0f}",
        f"{memory:.0f}",
        f"{_requests(quiet, later, *_WRITES):.0f}",
        f"{_requests(quiet, later, 'GET'):.0f}",
    ]
    standing = [
        f"{scaled} of {count}",
        f"{scaling:.1f}",
        *_rounds(later, last),
        f"{_requests(later, last) / scaled:.1f}",
        f"{most:.0f}",
    ]
    return f"| {' | '.join(burst)} |", f"| {' | '.join(standing)} |"


def main() -> None:
    parser = argparse.ArgumentParser("bench.reconcile", description=__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 100, 1000])
    counts = parser.parse_args().objects
    version = subprocess.run([bin_dir() / "kube-apiserver", "--version"], capture_output=True, text=True, timeout=30)
    print(f"{version.stdout.strip()}; percentiles are upper bounds of histogram buckets\n", flush=True)
    rounds = "rounds | p50, ms | p99, ms | queue p99, ms | requests each"
    rows = []
    for count in counts:
        rows.append(measure(count))
        print(*rows[-1], sep="\n", file=sys.stderr, flush=True)
    quiet = f"{_STEADY_SECONDS:.0f} s"
    print(f"| created | all ready, s | {rounds} | CPU each, ms | RSS, MB | writes in {quiet} | reads in {quiet} |")
    print(f"|{'---|' * 11}", *(burst for burst, _ in rows), sep="\n")
    print(f"\n| scaled up, {_SCALED_PER_SECOND:g} a second | all serve, s | {rounds} | RSS, MB |")
    print(f"|{'---|' * 8}", *(standing for _, standing in rows), sep="\n")


if __name__ == "__main__":
    main()
