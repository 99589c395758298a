"""What the tests install and apply."""

from typing import Any

from e2e_support import ROOT

MD = "smollm2"
CHART = str(ROOT / "charts" / "oarlock")
OPERATOR = "oarlock-operator"


def deployment(source: str, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment that starts quickly and forgives what the tests do to it."""
    return {
        "apiVersion": "serving.oarlock.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": MD},
        "spec": {
            "model": {"source": source, "name": "SmolLM2"},
            "server": {"maxSequences": 16, "threads": 1, "kvMemory": "256Mi"},
            "drain": {"timeoutSeconds": 30},
            "restart": {"backoffSeconds": 1, "budget": 20},
            **spec,
        },
    }
