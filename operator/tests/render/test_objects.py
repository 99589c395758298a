"""Services, disruption budget, claim and network policy."""

from typing import Any

from operator_support.builders import deployment

from oarlock_operator.api import names
from oarlock_operator.render.objects import standing_objects
from oarlock_operator.render.pod import pod
from oarlock_operator.render.settings import RenderSettings


def by_kind(settings: RenderSettings | None = None, **spec: Any) -> dict[tuple[str, str], dict[str, Any]]:
    found = standing_objects(deployment(**spec), settings or RenderSettings(), (0, 1))
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
    assert ("NetworkPolicy", "llm") in objects


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


def lets_in(policies: list[dict[str, Any]], caller: dict[str, str], pod: dict[str, Any], port: int) -> bool:
    """Whether the policies of its namespace let a pod with the labels `caller` call `port` of another pod, as
    NetworkPolicies are defined: those that select the pod and their rules add up, within a rule both parts must match,
    and what is absent matches all."""
    mine = [one["spec"] for one in policies if selects(one["spec"]["podSelector"], pod["metadata"]["labels"])]
    containers = {one["name"]: one["containerPort"] for one in pod["spec"]["containers"][0]["ports"]}
    return any(
        any(selects(peer["podSelector"], caller) for peer in rule.get("from", [{"podSelector": {"matchLabels": {}}}]))
        and any(containers[one["port"]] == port for one in rule.get("ports", [{"port": name} for name in containers]))
        for spec in mine
        for rule in spec["ingress"]
    )


def test_the_policies_keep_members_ports_to_their_group() -> None:
    settings = RenderSettings(network_policy=True)
    two = {"parallelism": {"nodes": 2}, "replicas": 2}
    policies = [one for (kind, _), one in by_kind(settings, **two).items() if kind == "NetworkPolicy"]
    groups = [[pod(deployment(**two), group, 1, rank, settings) for rank in (0, 1)] for group in (0, 1)]
    stranger = pod(deployment("other"), 0, 1, 0, settings)
    assert all(
        one["spec"]["policyTypes"] == ["Ingress"] for one in policies
    )  # members fetch their model wherever it is
    assert not any(selects(one["spec"]["podSelector"], stranger["metadata"]["labels"]) for one in policies)
    for mine, others in (groups, groups[::-1]):
        members = [one["metadata"]["labels"] for one in mine]
        strangers = [{}, {"app": "client"}, *(one["metadata"]["labels"] for one in (stranger, *others))]
        for _, _, port in names.PORTS:
            for called in mine:
                assert all(lets_in(policies, caller, called, port) for caller in members)
                assert {lets_in(policies, caller, called, port) for caller in strangers} == {port != 8813}
    # Between members any other port too: communicators choose theirs.
    assert [one["metadata"]["name"] for one in policies if "ports" not in one["spec"]["ingress"][0]] == [
        "llm-group-0",
        "llm-group-1",
    ]
