"""The chart's admission policy on a real API server: whoever doesn't hold the lease writes nothing."""

import asyncio
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config
from operator_support.apiserver import Server

from cluster.versions import bin_dir, missing
from oarlock_operator.api import names
from oarlock_operator.controller.client import Api, ApiError, NotLeader, path
from oarlock_operator.controller.metrics import Metrics

CHART = Path(__file__).parents[3] / "charts" / "oarlock"
ACCOUNT = "oarlock-operator"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
PLURALS = {
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}


def rendered(namespace: str) -> list[dict[str, Any]]:
    command = [bin_dir() / "helm", "template", "oarlock", CHART, "--namespace", namespace]
    done = subprocess.run([*command, "--show-only", "templates/fence.yaml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture
def policy(server: Server, namespace: str) -> Iterator[None]:
    if missing(("helm",)):
        pytest.skip("no helm: run make cluster-build to test the chart's admission policy")
    objects = rendered(namespace)
    for found in objects:
        server.request("POST", f"{ADMISSION}/{PLURALS[found['kind']]}", found)
    yield
    for found in objects:
        server.request("DELETE", f"{ADMISSION}/{PLURALS[found['kind']]}/{found['metadata']['name']}")


def pod(namespace: str, name: str) -> dict[str, Any]:
    spec = {"serviceAccountName": ACCOUNT, "containers": [{"name": "c", "image": "i"}]}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def kubeconfig(server: Server, namespace: str, name: str, folder: Path) -> Path:
    """For the operator's service account as it is in the pod `name`."""
    server.request("POST", path("Pod", namespace), pod(namespace, name))
    bound = {"apiVersion": "v1", "kind": "Pod", "name": name}
    wanted = {"spec": {"audiences": ["https://kubernetes.default.svc"], "boundObjectRef": bound}}
    answer = server.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{ACCOUNT}/token", wanted)
    config = yaml.safe_load(server.plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": answer["status"]["token"]}
    file = folder / name
    file.write_text(yaml.safe_dump(config))
    return file


async def connect(config: Path) -> Api:
    configuration = kube.Configuration()
    await kube_config.load_kube_config(str(config), client_configuration=configuration)
    return Api(kube.ApiClient(configuration), Metrics())


def lease(namespace: str, holder: str) -> dict[str, Any]:
    metadata = {"name": "oarlock-operator", "namespace": namespace}
    return {"kind": "Lease", "metadata": metadata, "spec": {"holderIdentity": holder}}


def test_a_stale_leader_is_refused_whatever_it_writes(
    server: Server, namespace: str, policy: None, tmp_path: Path
) -> None:
    server.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    grant = {
        "metadata": {"name": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }
    server.request("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", grant)
    server.request("POST", path("Lease", namespace), lease(namespace, "second-0a1b2c3d"))
    deployment = server.create(namespace)
    configs = {name: kubeconfig(server, namespace, name, tmp_path) for name in ("first", "second")}

    async def tried(api: Api, name: str) -> bool:
        """Whether this pod may make another one."""
        try:
            await api.create(pod(namespace, name))
        except NotLeader:
            return False
        except ApiError as error:
            if error.status == 403 and "not yet ready" in str(error):
                return True  # the policy is so new that the API server hasn't read the leases yet
            raise
        return True

    async def settled(api: Api, expected: bool) -> None:
        """The API server follows the lease, not in the same instant."""
        for number in range(100):
            if await tried(api, f"made-{id(api):x}-{expected}-{number}".lower()) is expected:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"writes are {'refused' if expected else 'allowed'}")

    async def story() -> None:
        first, second = [await connect(configs[name]) for name in ("first", "second")]
        try:
            await settled(first, False)
            await settled(second, True)
            uid = server.request("GET", path("Pod", namespace, "second"))["metadata"]["uid"]
            with pytest.raises(NotLeader):
                await first.delete("Pod", namespace, "second", uid)
            with pytest.raises(NotLeader):
                await first.merge(names.KIND, namespace, "llm", {"metadata": {"finalizers": [names.FINALIZER]}})
            with pytest.raises(NotLeader):
                await first.replace({**deployment, "status": {"epoch": 7}}, "status")
            server.patch("Lease", namespace, "oarlock-operator", {"spec": {"holderIdentity": "first-4e5f6071"}})
            await settled(second, False)
            await settled(first, True)
            await first.replace({**deployment, "status": {"epoch": 7}}, "status")
        finally:
            await first.close()
            await second.close()

    try:
        asyncio.run(story())
    finally:
        server.request("DELETE", f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{namespace}")


def test_others_are_not_concerned(server: Server, namespace: str, policy: None) -> None:
    try:
        server.create(namespace)
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None
