"""The objects a deployment has beside its pods: Services, disruption budget, claim, network policies."""

from collections.abc import Iterable
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.render.common import metadata
from oarlock_operator.render.settings import RenderSettings


def standing_objects(
    deployment: ModelDeployment, settings: RenderSettings, groups: Iterable[int]
) -> list[dict[str, Any]]:
    """All of them, in the order they are made; `groups`: the numbers of those that exist or are about to."""
    found = [leader_service(deployment), members_service(deployment), disruption_budget(deployment)]
    if deployment.spec.model.cache.storage_class_name is not None:
        found.append(cache_claim(deployment))
    if settings.network_policy:
        found.append(network_policy(deployment))
        found += [group_policy(deployment, group) for group in groups]
    return found


def leader_service(deployment: ModelDeployment) -> dict[str, Any]:
    """What clients call: leaders that are ready."""
    found = metadata(deployment, names.leader_service(deployment.name), "service")
    if deployment.spec.service.annotations:
        found["annotations"] = dict(deployment.spec.service.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": found,
        "spec": {
            "type": deployment.spec.service.type,
            "selector": names.leader_selector(deployment.name),
            "ports": _ports(names.service_ports()),
        },
    }


def members_service(deployment: ModelDeployment) -> dict[str, Any]:
    """Gives every member a name in DNS from the moment it has an address."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, names.members_service(deployment.name), "members"),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.DEPLOYMENT: deployment.name},
            "ports": _ports(names.PORTS),
        },
    }


def _ports(ports: tuple[tuple[str, str, int], ...]) -> list[dict[str, Any]]:
    return [{"name": name, "port": port, "targetPort": name, "protocol": "TCP"} for name, _, port in ports]


def disruption_budget(deployment: ModelDeployment) -> dict[str, Any]:
    """Lets one group at a time be disturbed.

    Losing any member costs the whole group, so all members count: with every pod but one asked to be healthy, the first
    eviction makes its group's other members unhealthy too, and no second one is allowed until the group is back. Pods
    that aren't ready never stand in the way of emptying a node.
    """
    pods = deployment.spec.replicas * deployment.spec.parallelism.nodes
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment, deployment.name, "server"),
        "spec": {
            "minAvailable": max(pods - 1, 0),
            "selector": {"matchLabels": {names.DEPLOYMENT: deployment.name}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def cache_claim(deployment: ModelDeployment) -> dict[str, Any]:
    """The claim for the model's files, shared by all pods."""
    cache = deployment.spec.model.cache
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(deployment, names.cache_claim(deployment.name), "model"),
        "spec": {
            "accessModes": [cache.access_mode],
            "storageClassName": cache.storage_class_name,
            "resources": {"requests": {"storage": cache.size}},
        },
    }


def network_policy(deployment: ModelDeployment) -> dict[str, Any]:
    """Nobody reaches more of a pod than what the Service offers, but for what group_policy adds."""
    ports = [{"port": name, "protocol": "TCP"} for name, _, _ in names.service_ports()]
    found = metadata(deployment, deployment.name, "server")
    return _policy(found, {names.DEPLOYMENT: deployment.name}, {"ports": ports})


def group_policy(deployment: ModelDeployment, group: int) -> dict[str, Any]:
    """Members of a group reach each other on every port: communicators choose theirs."""
    labels = {names.GROUP_INDEX: str(group)}
    found = metadata(deployment, names.group_policy(deployment.name, group), "server", **labels)
    members = {names.DEPLOYMENT: deployment.name, **labels}
    return _policy(found, members, {"from": [{"podSelector": {"matchLabels": members}}]})


def _policy(found: dict[str, Any], pods: dict[str, str], rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": found,
        "spec": {"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"], "ingress": [rule]},
    }
