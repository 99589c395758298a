"""Where a pod of a group may run: node selection, tolerations, and each member on a node of its own."""

from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment

# A node that is gone for so long is given up, not the 300 s that Kubernetes would wait: its group doesn't serve.
_GONE_SECONDS = 30
_GONE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def placement(deployment: ModelDeployment, group: int, epoch: int, rank: int) -> dict[str, Any]:
    """The fields of a pod's spec that the scheduler reads."""
    scheduling = deployment.spec.scheduling
    found: dict[str, Any] = {"tolerations": _tolerations(deployment)}
    if scheduling.node_selector:
        found["nodeSelector"] = dict(scheduling.node_selector)
    affinity = _affinity(deployment, group, epoch)
    if affinity:
        found["affinity"] = affinity
    if scheduling.topology_spread:
        found["topologySpreadConstraints"] = [
            {
                **constraint.to_wire(),
                "labelSelector": {"matchLabels": {names.DEPLOYMENT: deployment.name, names.RANK: str(rank)}},
                "matchLabelKeys": [names.REVISION],
            }
            for constraint in scheduling.topology_spread
        ]
    for field, value in (
        ("priorityClassName", scheduling.priority_class_name),
        ("runtimeClassName", scheduling.runtime_class_name),
        ("schedulerName", scheduling.scheduler_name),
    ):
        if value is not None:
            found[field] = value
    return found


def _tolerations(deployment: ModelDeployment) -> list[dict[str, Any]]:
    given = deployment.spec.scheduling.tolerations
    ours = [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _GONE_SECONDS}
        for taint in _GONE_TAINTS
        if not any(toleration.key in (taint, None) for toleration in given)
    ]
    return [*(toleration.to_wire() for toleration in given), *ours]


def _affinity(deployment: ModelDeployment, group: int, epoch: int) -> dict[str, Any]:
    affinity = dict(deployment.spec.scheduling.affinity or {})
    if deployment.spec.parallelism.nodes == 1:
        return affinity
    apart = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {
            "matchLabels": {
                names.DEPLOYMENT: deployment.name,
                names.GROUP_INDEX: str(group),
                names.EPOCH: str(epoch),
            }
        },
    }
    anti = dict(affinity.get("podAntiAffinity") or {})
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    return {**affinity, "podAntiAffinity": {**anti, required: [*anti.get(required, ()), apart]}}
