"""kubectl and helm as the tests use them."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from cluster.processes import PATIENCE
from cluster.versions import bin_dir

_HELM_SECONDS = 120


class Kube:
    """One cluster, as the user of `environment`'s KUBECONFIG; objects are in `namespace`."""

    def __init__(self, environment: dict[str, str], namespace: str) -> None:
        self.environment = environment
        self.namespace = namespace

    def run(self, *command: str, given: str | None = None, check: bool = True, seconds: float = 120) -> str:
        """A command's output; AssertionError with what it said when it fails."""
        seconds *= PATIENCE
        done = subprocess.run(
            command, env=self.environment, input=given, capture_output=True, text=True, timeout=seconds
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout if done.returncode == 0 else done.stderr

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True, seconds: float = 120) -> str:
        return self.run("kubectl", "-n", self.namespace, *arguments, given=given, check=check, seconds=seconds)

    def helm(self, namespace: str, *arguments: str) -> str:
        """helm's word once all that it did has come to be."""
        wait = ("--wait", "--timeout", f"{_HELM_SECONDS * PATIENCE:g}s")
        return self.run("helm", "--namespace", namespace, *arguments, *wait, seconds=2 * _HELM_SECONDS)

    def apply(self, body: dict[str, Any], check: bool = True) -> str:
        return self.kubectl("apply", "-f", "-", given=json.dumps(body), check=check)

    def get(self, *what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.get("modeldeployment", name).get("status") or {})

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        conditions = self.status(name).get("conditions", [])
        return next((dict(one) for one in conditions if one["type"] == kind), {})

    def ready(self, name: str) -> bool:
        """Ready, and that about the present spec with nothing left to do."""
        found = self.get("modeldeployment", name)
        status = found.get("status") or {}
        conditions = {one["type"]: one for one in status.get("conditions", [])}
        return bool(
            status.get("observedGeneration") == found["metadata"]["generation"]
            and conditions.get("Ready", {}).get("status") == "True"
            and conditions.get("Progressing", {}).get("reason") == "Complete"
        )

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The deployment's pods that nobody deletes."""
        found = self.get("pods", "-l", f"serving.oarlock.dev/deployment={name}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def uids(self, name: str) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods(name)}

    def until(self, what: str, check: Callable[[], object], seconds: float = 60) -> float:
        """Waits until `check` holds; returns the seconds that took."""
        seconds *= PATIENCE
        begin = time.monotonic()
        while not check():
            if time.monotonic() - begin > seconds:
                state = self.kubectl("get", "modeldeployments,pods", "-o", "wide", check=False)
                events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
                raise AssertionError(f"{what}: not within {seconds:g} s\n{state}\n{events[-3000:]}")
            time.sleep(0.3)
        return time.monotonic() - begin


def environment(kubeconfig: str) -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": kubeconfig, "PATH": f"{bin_dir()}:{os.environ.get('PATH', '')}"}
