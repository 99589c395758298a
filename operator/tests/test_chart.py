"""The helm chart as it is rendered: rights, security, what its values do. helm is built by `make cluster-build`."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.versions import bin_dir, missing

CHART = Path(__file__).parents[2] / "charts" / "oarlock"
VALUES = (
    (),
    ("namespaces={a,b}", "networkPolicy=true", "allowHostPath=true", "replicas=1"),
    ("serviceMonitor.enabled=true", "serviceMonitor.labels.release=prometheus", "imagePullSecrets[0].name=login"),
    ("crds.install=false", "cleanup.enabled=false", "leaderFence=false", "userRoles=false"),
)

pytestmark = pytest.mark.skipif(bool(missing(("helm",))), reason="no helm: run make cluster-build to test the chart")


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (bin_dir() / "helm", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def flags(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def rendered(*values: str) -> dict[tuple[str, str], dict[str, Any]]:
    done = helm("template", "oarlock", CHART, "--namespace", "system", *flags(values))
    assert done.returncode == 0, done.stderr
    found = [body for body in yaml.safe_load_all(done.stdout) if body]
    return {(body["kind"], body["metadata"]["name"]): body for body in found}


@pytest.mark.parametrize("values", VALUES)
def test_it_is_linted(values: tuple[str, ...]) -> None:
    done = helm("lint", "--strict", CHART, *flags(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("replicas=0", "replicas"),
        ("logLevel=loud", "logLevel"),
        ("replica=2", "replica"),
        ("image.pullPolicy=x", "pullPolicy"),
    ],
)
def test_wrong_values_are_refused(value: str, told: str) -> None:
    done = helm("template", "oarlock", CHART, "--set", value)
    assert done.returncode and told in done.stderr


@pytest.mark.parametrize("values", VALUES)
def test_rights_are_no_more_than_needed(values: tuple[str, ...]) -> None:
    objects = rendered(*values)
    operator = [
        rule
        for (kind, name), body in objects.items()
        if kind in ("Role", "ClusterRole") and "modeldeployments-" not in name
        for rule in body["rules"]
    ]
    assert operator
    for rule in operator:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not {"secrets", "nodes", "clusterroles", "roles"} & set(rule["resources"])
        if "leases" in rule["resources"] and rule["verbs"] != ["create"]:
            assert rule["resourceNames"] == ["oarlock-operator"]
    everywhere = {name for kind, name in objects if kind == "ClusterRoleBinding"}
    listed = any(value.startswith("namespaces") for value in values)
    assert not everywhere if listed else everywhere
    if listed:
        places = {body["metadata"]["namespace"] for (kind, _), body in objects.items() if kind == "RoleBinding"}
        assert "b" in places  # objects of one name in several namespaces: the last is seen


@pytest.mark.parametrize("values", VALUES)
def test_pods_are_restricted(values: tuple[str, ...]) -> None:
    pods = [
        body["spec"]["template"]["spec"]
        for (kind, _), body in rendered(*values).items()
        if kind in ("Deployment", "Job")
    ]
    assert pods
    for spec in pods:
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"]
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["capabilities"] == {"drop": ["ALL"]} and not security["allowPrivilegeEscalation"]
            assert security["readOnlyRootFilesystem"] and "requests" in container["resources"]


def test_the_operator_is_told_its_values() -> None:
    def arguments(*values: str) -> list[str]:
        deployment = rendered(*values)["Deployment", "oarlock-operator"]
        return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])

    assert arguments()[0] == "run" and "--no-leader-election" not in arguments()
    assert not {"--network-policy", "--allow-host-path"} & set(arguments())
    asked = arguments(*VALUES[1])
    assert {"--network-policy", "--allow-host-path", "--namespace=a", "--namespace=b"} <= set(asked)


def test_the_definition_is_upgraded_and_kept() -> None:
    definition = yaml.safe_load((CHART.parents[1] / "crds" / "modeldeployments.yaml").read_text())
    assert not (CHART / "crds").exists()  # helm would install what is in there once, and never upgrade it
    found = rendered()["CustomResourceDefinition", definition["metadata"]["name"]]
    assert found["spec"] == definition["spec"]
    assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not [kind for kind, _ in rendered(*VALUES[3]) if kind == "CustomResourceDefinition"]


def test_the_monitor_selects_the_metrics() -> None:
    objects = rendered(*VALUES[2])
    monitor, service = objects["ServiceMonitor", "oarlock-operator"], objects["Service", "oarlock-operator"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    template = objects["Deployment", "oarlock-operator"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert ("ServiceMonitor", "oarlock-operator") not in rendered()


def test_the_uninstall_takes_finalizers_off_first() -> None:
    found = {name: body for (kind, name), body in rendered().items() if kind == "Job"}
    (job,) = found.values()
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][0] == "release" and "--deployment=oarlock-operator" in container["args"]
