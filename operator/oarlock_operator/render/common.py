"""What every owned object has in its metadata, and the image and revision a deployment is made from."""

import hashlib
import json
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.render.settings import RenderSettings

# Raised when rendering changes in a way that running pods must follow; only then does a new operator replace pods.
RENDER_VERSION = 1

# Fields that don't reach into a running pod: changing them replaces nothing.
_NOT_IN_PODS = {"replicas", "rollout", "restart", "service"}


def metadata(deployment: ModelDeployment, name: str, component: str, **labels: str) -> dict[str, Any]:
    """Metadata of an owned object: it goes when the ModelDeployment goes."""
    return {
        "name": name,
        "namespace": deployment.namespace,
        "labels": {
            "app.kubernetes.io/name": "oarlock",
            "app.kubernetes.io/instance": deployment.name,
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "oarlock",
            "app.kubernetes.io/managed-by": names.FIELD_MANAGER,
            names.DEPLOYMENT: deployment.name,
            **labels,
        },
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": deployment.name,
                "uid": deployment.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def image(deployment: ModelDeployment, settings: RenderSettings) -> str:
    """The server's image: the user's choice, or the installation's for CPUs or GPUs."""
    default = settings.gpu_image if deployment.spec.parallelism.gpus_per_node else settings.cpu_image
    return deployment.spec.image or default


def revision(deployment: ModelDeployment, settings: RenderSettings) -> str:
    """A short name for the version of everything that reaches into the pods.

    Fields at their default are left out, so that a field added to the API later doesn't replace running pods.
    """
    wanted = deployment.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for field in _NOT_IN_PODS:
        wanted.pop(field, None)
    content = [RENDER_VERSION, image(deployment, settings), wanted, deployment.annotations.get(names.RESTART, "")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
