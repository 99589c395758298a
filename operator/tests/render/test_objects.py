"""Services, disruption budget, claim and network policy."""

from typing import Any

from operator_support.builders import deployment

from oarlock_operator.api import names
from oarlock_operator.render.objects import standing_objects
from oarlock_operator.render.settings import RenderSettings


def by_kind(settings: RenderSettings | None = None, **spec: Any) -> dict[tuple[str, str], dict[str, Any]]:
    found = standing_objects(deployment(**spec), settings or RenderSettings())
    return {(o["kind"], o["metadata"]["name"]): o for o in found}


def test_only_leaders_are_behind_the_service() -> None:
    objects = by_kind(parallelism={"nodes": 2})
    service = objects["Service", "llm"]["spec"]
    assert service["selector"] == {names.DEPLOYMENT: "llm", names.RANK: "0"}
    assert "inter-proc" not in [port["name"] for port in service["ports"]]
    members = objects["Service", "llm-members"]["spec"]
    assert members["clusterIP"] == "None" and members["publishNotReadyAddresses"] is True
    assert len(members["ports"]) == 5


def test_budget_counts_whole_groups() -> None:
    budget = by_kind(replicas=3, parallelism={"nodes": 2})["PodDisruptionBudget", "llm"]["spec"]
    assert budget["minAvailable"] == 5
    assert by_kind(replicas=0)["PodDisruptionBudget", "llm"]["spec"]["minAvailable"] == 0


def test_claim_and_policy_only_when_wanted() -> None:
    assert len(by_kind()) == 3
    model = {"source": "hf://a/b", "cache": {"storageClassName": "fast", "size": "10Gi"}}
    objects = by_kind(RenderSettings(network_policy=True), model=model)
    assert objects["PersistentVolumeClaim", "llm-model"]["spec"]["accessModes"] == ["ReadWriteMany"]
    peers, everyone = objects["NetworkPolicy", "llm"]["spec"]["ingress"]
    assert "ports" not in peers and "from" not in everyone
