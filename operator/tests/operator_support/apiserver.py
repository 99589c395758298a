"""A real API server for tests of the controller, and the few requests they make themselves; no kubelet behind it."""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from operator_support.builders import body

from cluster.control_plane import ControlPlane
from oarlock_operator.api import crd, names
from oarlock_operator.controller.client import path


class Server:
    """Synchronous and simple: tests wait, they don't serve."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        trust = ssl.create_default_context(cafile=str(plane.pki.ca))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )

    def request(self, method: str, where: str, data: Any = None, content_type: str = "application/json") -> Any:
        request = urllib.request.Request(
            self.plane.url + where,
            data=json.dumps(data).encode() if data is not None else None,
            method=method,
            headers={"Authorization": "Bearer admin-token", "Content-Type": content_type},
        )
        with self._opener.open(request, timeout=10) as answer:
            return json.load(answer)

    def install(self) -> None:
        """Our CRD, ready to use."""
        where = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self.request("POST", where, yaml.safe_load(crd.text()))
        self.until(lambda: self._served())

    def _served(self) -> bool:
        try:
            self.request("GET", path(names.KIND, "default"))
        except urllib.error.HTTPError:
            return False
        return True

    def namespace(self, name: str) -> None:
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        # What the controller manager, which doesn't run here, would make.
        self.request("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})

    def create(self, namespace: str, name: str = "llm", **spec: Any) -> dict[str, Any]:
        wanted = body(name, **spec)
        wanted["metadata"] = {"name": name, "namespace": namespace}
        found: dict[str, Any] = self.request("POST", path(names.KIND, namespace), wanted)
        return found

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.request("GET", path(kind, namespace, name))
            return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def objects(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        return list(self.request("GET", path(kind, namespace))["items"])

    def pods(self, namespace: str) -> list[str]:
        """Names of the pods that nobody deletes."""
        found = self.objects("Pod", namespace)
        return sorted(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])

    def patch(self, kind: str, namespace: str, name: str, data: Any, subresource: str = "") -> dict[str, Any]:
        where = path(kind, namespace, name, subresource)
        found: dict[str, Any] = self.request("PATCH", where, data, "application/merge-patch+json")
        return found

    def delete(self, kind: str, namespace: str, name: str, grace: int | None = None) -> None:
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        self.request("DELETE", path(kind, namespace, name), options)

    def serve(self, namespace: str, pod: str, ip: str) -> None:
        """Plays the kubelet: the pod has an address, its init containers are through, its server is ready."""
        found = self.get("Pod", namespace, pod)
        assert found is not None
        if "nodeName" not in found["spec"]:
            binding = {"metadata": {"name": pod}, "target": {"kind": "Node", "name": "n1"}}
            self.request("POST", path("Pod", namespace, pod, "binding"), binding)
        done = {"terminated": {"exitCode": 0, "startedAt": None, "finishedAt": None}}
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "initContainerStatuses": [_container(c["name"], done, False) for c in found["spec"]["initContainers"]],
            "containerStatuses": [_container(names.SERVER_CONTAINER, {"running": {}}, True)],
        }
        self.patch("Pod", namespace, pod, {"status": status}, "status")

    def condition(self, namespace: str, kind: str, name: str = "llm") -> dict[str, Any]:
        found = self.get(names.KIND, namespace, name)
        assert found is not None
        conditions = found.get("status", {}).get("conditions", [])
        return next((dict(one) for one in conditions if one["type"] == kind), {})

    @staticmethod
    def until(check: Callable[[], object], seconds: float = 15.0) -> None:
        """Waits until `check` holds."""
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, "not within the time limit"
            time.sleep(0.05)


def _container(name: str, state: dict[str, Any], ready: bool) -> dict[str, Any]:
    return {"name": name, "state": state, "ready": ready, "restartCount": 0, "image": "i", "imageID": ""}


def start(folder: Path) -> Server:
    """An API server with our CRD."""
    plane = ControlPlane(folder)
    plane.start()
    server = Server(plane)
    server.install()
    return server
