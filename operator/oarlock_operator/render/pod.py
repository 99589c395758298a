"""One pod of a group: download the model, wait for the roster, serve.

The roster container waits until the operator has written every member's address on this pod; a downward-API volume
shows it as a file. The server's variables POD_IPS and POD_0_IP are read from the same annotations when its container
starts, which is after that. So any image that reads PaddleNLP's variables can be a member.
"""

from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.api.pods import Resources
from oarlock_operator.render import common
from oarlock_operator.render.environment import download_environment, server_environment
from oarlock_operator.render.placement import placement
from oarlock_operator.render.settings import RenderSettings
from oarlock_operator.render.volumes import (
    MODELS,
    ROSTER,
    download_mounts,
    downloads,
    pod_volumes,
    roster_mounts,
    server_mounts,
)

USER = 65532
_ROSTER_WAIT_SECONDS = 3600
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def pod(deployment: ModelDeployment, group: int, epoch: int, rank: int, settings: RenderSettings) -> dict[str, Any]:
    """The pod of `rank` (0 is the leader) in formation `epoch` of group number `group`."""
    spec = deployment.spec
    found: dict[str, Any] = {
        "restartPolicy": "Always",
        "enableServiceLinks": False,
        "automountServiceAccountToken": spec.service_account_name is not None,
        "hostname": names.hostname(deployment.name, group, rank),
        "subdomain": names.members_service(deployment.name),
        "terminationGracePeriodSeconds": spec.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **placement(deployment, group, epoch, rank),
        "initContainers": [*_download_containers(deployment, settings), _roster_container(deployment, settings)],
        "containers": [_server_container(deployment, settings)],
        "volumes": pod_volumes(deployment),
    }
    if spec.service_account_name is not None:
        found["serviceAccountName"] = spec.service_account_name
    if spec.image_pull_secrets:
        found["imagePullSecrets"] = [secret.to_wire() for secret in spec.image_pull_secrets]
    labels = {
        names.GROUP_INDEX: str(group),
        names.EPOCH: str(epoch),
        names.RANK: str(rank),
        names.REVISION: common.revision(deployment, settings),
    }
    name = names.pod_name(deployment.name, group, epoch, rank)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": common.metadata(deployment, name, "server", **labels),
        "spec": found,
    }


def roster(addresses: list[str], uids: list[str]) -> dict[str, str]:
    """The annotations that tell a group's members of each other, in order of rank."""
    return {names.POD_IPS: ",".join(addresses), names.POD_0_IP: addresses[0], names.ROSTER_UIDS: ",".join(uids)}


def _container(name: str, deployment: ModelDeployment, settings: RenderSettings, **rest: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": common.image(deployment, settings),
        "imagePullPolicy": deployment.spec.image_pull_policy,
        "securityContext": _CONTAINER_SECURITY,
        # What a failed container said last is then found in its state, and from there in our conditions.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **rest,
    }


def _resources(resources: Resources, extra: dict[str, str | int] | None = None) -> dict[str, Any]:
    found = {"requests": dict(resources.requests), "limits": {**resources.limits, **(extra or {})}}
    return {kind: {name: str(value) for name, value in values.items()} for kind, values in found.items() if values}


def _server_container(deployment: ModelDeployment, settings: RenderSettings) -> dict[str, Any]:
    spec, probes = deployment.spec, deployment.spec.probes
    gpus: dict[str, str | int] = (
        {spec.parallelism.gpu_resource: spec.parallelism.gpus_per_node} if spec.parallelism.gpus_per_node else {}
    )
    timing = {"periodSeconds": probes.period_seconds, "timeoutSeconds": probes.timeout_seconds}
    return _container(
        names.SERVER_CONTAINER,
        deployment,
        settings,
        env=server_environment(deployment),
        ports=[{"name": name, "containerPort": port, "protocol": "TCP"} for name, _, port in names.PORTS],
        resources=_resources(spec.resources, gpus),
        volumeMounts=server_mounts(),
        startupProbe={
            **_probe("ready"),
            "periodSeconds": 1,
            "timeoutSeconds": probes.timeout_seconds,
            "failureThreshold": probes.startup_seconds,
        },
        readinessProbe={**_probe("ready"), **timing, "failureThreshold": probes.readiness_failures},
        livenessProbe={**_probe("live"), **timing, "failureThreshold": probes.liveness_failures},
        # Goes on accepting until endpoints have moved; the drain follows with SIGTERM.
        lifecycle={"preStop": {"sleep": {"seconds": max(spec.drain.endpoint_seconds, 1)}}},
    )


def _probe(question: str) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{question}", "port": "health", "scheme": "HTTP"}}


def _download_containers(deployment: ModelDeployment, settings: RenderSettings) -> list[dict[str, Any]]:
    """The download, unless the source is a path: then the model is there already."""
    source = deployment.spec.model.source
    if not downloads(source):
        return []
    return [
        _container(
            names.DOWNLOAD_CONTAINER,
            deployment,
            settings,
            command=["oarlock", "download", source, "--cache-dir", MODELS, "--report-every", "1"],
            env=download_environment(deployment),
            resources=_resources(deployment.spec.download.resources),
            volumeMounts=download_mounts(),
        )
    ]


def _roster_container(deployment: ModelDeployment, settings: RenderSettings) -> dict[str, Any]:
    file = f"{ROSTER}/pod-ips"
    complaint = f"no roster after {_ROSTER_WAIT_SECONDS} s"
    script = (
        f"trap 'exit 143' TERM; i=0; until [ -s {file} ]; do i=$((i+1)); "
        f'[ "$i" -lt {_ROSTER_WAIT_SECONDS * 5} ] || {{ echo "{complaint}" >&2; exit 1; }}; '
        "sleep 0.2; done"
    )
    return _container(
        names.ROSTER_CONTAINER,
        deployment,
        settings,
        command=["sh", "-c", script],
        resources={"requests": {"cpu": "10m", "memory": "16Mi"}},
        volumeMounts=roster_mounts(),
    )
