"""The chart with what is off by default: a list of namespaces, network policies, a ServiceMonitor."""

import json
from pathlib import Path

from e2e_support import NAMESPACE, SYSTEM
from e2e_support.deployment import CHART, MD, OPERATOR, deployment
from e2e_support.kube import Kube
from e2e_support.weights import WeightServer

OTHERS = "others"
MONITORS = "servicemonitors.monitoring.coreos.com"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
VALUES = (
    f"namespaces={{{NAMESPACE}}}", "networkPolicy=true", "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=prometheus", "replicas=1",
)  # fmt: skip


def test_install_for_one_namespace(kube: Kube) -> None:
    kube.run("kubectl", "apply", "-f", str(Path(__file__).parent / "fixtures" / "servicemonitor.yaml"))
    kube.run("kubectl", "wait", f"crd/{MONITORS}", "--for=condition=Established", "--timeout=30s")
    kube.run("kubectl", "create", "namespace", OTHERS, check=False)
    flags = [word for value in VALUES for word in ("--set", value)]
    kube.helm(SYSTEM, "install", "oarlock", CHART, *flags)


def test_the_operator_has_no_rights_elsewhere(kube: Kube) -> None:
    def may(verb: str, resource: str, namespace: str) -> bool:
        asked = ("kubectl", "auth", "can-i", verb, resource, "-n", namespace, f"--as={ACCOUNT}")
        return kube.run(*asked, check=False).strip() == "yes"

    assert may("create", "pods", NAMESPACE) and may("list", "modeldeployments.serving.oarlock.dev", NAMESPACE)
    assert not may("create", "pods", OTHERS) and not may("list", "modeldeployments.serving.oarlock.dev", OTHERS)
    assert not may("get", "secrets", NAMESPACE) and not may("get", "secrets", SYSTEM)
    assert OPERATOR not in kube.run("kubectl", "get", "clusterroles,clusterrolebindings", "-o", "name")


def test_the_monitor_finds_the_metrics(kube: Kube) -> None:
    monitor = json.loads(kube.run("kubectl", "-n", SYSTEM, "get", MONITORS, OPERATOR, "-o", "json"))
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = ",".join(f"{key}={value}" for key, value in monitor["spec"]["selector"]["matchLabels"].items())
    found = json.loads(kube.run("kubectl", "-n", SYSTEM, "get", "services", "-l", selector, "-o", "json"))["items"]
    assert [service["metadata"]["name"] for service in found] == [OPERATOR]
    port = monitor["spec"]["endpoints"][0]["port"]
    assert port in [one["name"] for one in found[0]["spec"]["ports"]]
    where = f"/api/v1/namespaces/{SYSTEM}/services/{OPERATOR}:{port}/proxy/metrics"
    kube.until("it leads", lambda: "oarlock_operator_leader 1.0" in kube.run("kubectl", "get", "--raw", where), 30)


def test_it_serves_in_that_namespace_alone(kube: Kube, weights: WeightServer) -> None:
    body = deployment(weights.url)
    kube.run("kubectl", "-n", OTHERS, "apply", "-f", "-", given=json.dumps(body))
    kube.apply(body)
    kube.until("it is ready", lambda: kube.ready(MD), 180)
    assert "status" not in json.loads(kube.run("kubectl", "-n", OTHERS, "get", "md", MD, "-o", "json"))
    (rule,) = kube.get("networkpolicy", MD)["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http", "grpc", "metrics", "health"]
    own = kube.get("networkpolicy", f"{MD}-group-0")["spec"]
    selector = {"matchLabels": {"serving.oarlock.dev/deployment": MD, "serving.oarlock.dev/group": "0"}}
    assert own["podSelector"] == selector and own["ingress"] == [{"from": [{"podSelector": selector}]}]


def test_it_leaves_nothing(kube: Kube) -> None:
    kube.kubectl("delete", "modeldeployment", MD, "--timeout=90s")
    kube.until("its policy is gone", lambda: not kube.get("networkpolicies")["items"], 60)
    kube.helm(SYSTEM, "uninstall", "oarlock")
    kinds = f"all,serviceaccounts,roles,rolebindings,leases,{MONITORS}"
    for namespace in (SYSTEM, NAMESPACE):
        left = kube.run("kubectl", "-n", namespace, "get", kinds, "-o", "name").split()
        assert not [name for name in left if OPERATOR in name]
    kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings"
    assert "oarlock" not in kube.run("kubectl", "get", kinds, "-o", "name")
    kube.run("kubectl", "delete", "namespace", OTHERS, "--timeout=60s")
    kube.run("kubectl", "delete", "crd", MONITORS, "--timeout=60s")
