"""Clients of a ModelDeployment, inside the cluster."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_support.deployment import MD
from e2e_support.kube import Kube

SERVER_IMAGE = "localhost/oarlock/runtime-cpu:0.1.0"


@contextmanager
def traffic(kube: Kube, threads: int = 2, node: str = "") -> Iterator[dict[str, Any]]:
    """Streams chats through the Service, from a pod of `node` if given, while the block runs.

    The counts are there when it has ended.
    """
    script = (Path(__file__).parent / "traffic.py").read_text()
    name = f"traffic-{int(time.time())}"
    host = f"{MD}.{kube.namespace}.svc.cluster.local"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            **({"nodeName": node} if node else {}),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 70,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "traffic",
                "image": SERVER_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python", "-c", script, host, str(threads), "SmolLM2"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }  # fmt: skip
    kube.apply(pod)
    kube.until("traffic flows", lambda: _counts(kube, name).get("whole", 0) > 0, 60)
    found: dict[str, Any] = {}
    yield found
    before = _counts(kube, name)["whole"]
    kube.until("traffic still flows", lambda: _counts(kube, name)["whole"] > before + 2, 60)
    kube.kubectl("exec", name, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    kube.until("traffic ends", lambda: kube.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"), 90)
    found |= _counts(kube, name) | {"log": kube.kubectl("logs", name)}
    kube.kubectl("delete", "pod", name, "--wait=false")


def _counts(kube: Kube, name: str) -> dict[str, int]:
    lines = re.findall(r"^counts (\{.*\})$", kube.kubectl("logs", name, check=False), re.M)
    return dict(json.loads(lines[-1])) if lines else {}


def nothing_failed(counts: dict[str, Any]) -> None:
    assert counts["whole"] > 0 and counts["failed"] == counts["unanswered"] == 0, counts["log"][-3000:]


def everybody_was_answered(counts: dict[str, Any]) -> None:
    """Each request got its text or an error."""
    assert counts["whole"] > 0 and counts["unanswered"] == 0, counts["log"][-3000:]
