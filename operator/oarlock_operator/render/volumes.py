"""The folders of a pod: the model's files, /dev/shm, /tmp, and the roster as files."""

from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment

# The cache that the download fills and the server reads: what is complete is found again, locks keep pods apart.
MODELS = "/models"
ROSTER = "/etc/oarlock/roster"


def downloads(source: str) -> bool:
    """Whether the source has to be fetched; a path is there already."""
    return not source.startswith("/")


def pod_volumes(deployment: ModelDeployment) -> list[dict[str, Any]]:
    return [
        {"name": "models", **_model_volume(deployment)},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": deployment.spec.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
        {
            "name": "roster",
            "downwardAPI": {
                "items": [
                    {
                        "path": "pod-ips",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{names.POD_IPS}']"},
                    }
                ]
            },
        },
    ]


def _model_volume(deployment: ModelDeployment) -> dict[str, Any]:
    model = deployment.spec.model
    if model.host_path is not None:
        return {"hostPath": {"path": model.host_path, "type": "DirectoryOrCreate"}}
    if model.cache.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": model.cache.claim_name}}
    if model.cache.storage_class_name is not None:
        return {"persistentVolumeClaim": {"claimName": names.cache_claim(deployment.name)}}
    return {"emptyDir": {"sizeLimit": model.cache.size} if model.cache.size else {}}


def server_mounts() -> list[dict[str, Any]]:
    return [
        {"name": "models", "mountPath": MODELS},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]


def download_mounts() -> list[dict[str, Any]]:
    return [{"name": "models", "mountPath": MODELS}, {"name": "tmp", "mountPath": "/tmp"}]


def roster_mounts() -> list[dict[str, Any]]:
    return [{"name": "roster", "mountPath": ROSTER, "readOnly": True}]
