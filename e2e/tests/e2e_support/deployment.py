"""What the tests install and apply."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from e2e_support import ROOT

MD = "smollm2"
CHART = str(ROOT / "charts" / "oarlock")
OPERATOR = "oarlock-operator"
MEMORY = 1536 << 20  # the limit of a pod, in bytes
ADDED = "schedulerName"  # a field of spec.scheduling that an older chart's definition doesn't have


def deployment(source: str, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment that starts quickly and forgives what the tests do to it."""
    return {
        "apiVersion": "serving.oarlock.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": MD},
        "spec": {
            "model": {"source": source, "name": "SmolLM2"},
            "server": {"maxSequences": 16, "threads": 1, "kvMemory": "256Mi"},
            "resources": {"requests": {"memory": "512Mi"}, "limits": {"memory": str(MEMORY)}},
            "drain": {"timeoutSeconds": 30},
            "restart": {"backoffSeconds": 1, "budget": 20},
            **spec,
        },
    }


def older_chart(folder: Path) -> str:
    """The chart as if of an earlier version, whose definition lacks the field `ADDED`."""
    chart = Path(shutil.copytree(CHART, folder / "oarlock"))
    file = chart / "files" / "modeldeployments.yaml"
    definition = yaml.safe_load(file.read_text())
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["scheduling"]["properties"][ADDED]
    file.write_text(yaml.safe_dump(definition))
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "0.0.1"}))
    return str(chart)
