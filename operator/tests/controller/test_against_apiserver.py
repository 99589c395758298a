"""The whole controller against a real API server: from apply to deletion, killed operators, drift, conflicts."""

import signal
import urllib.error

import pytest
from operator_support.apiserver import Server

from oarlock_operator.api import names
from tests.controller.conftest import Operators


def formed(server: Server, namespace: str, *pods: str) -> None:
    """Waits for these pods and lets them serve."""
    server.until(lambda: set(pods) <= set(server.pods(namespace)))
    for number, pod in enumerate(pods):
        server.serve(namespace, pod, f"10.1.0.{number + 1}")


def roster(server: Server, namespace: str, pod: str) -> str | None:
    """What the pod was told about its group's addresses."""
    found = server.get("Pod", namespace, pod)
    assert found is not None
    told: str | None = found["metadata"].get("annotations", {}).get(names.POD_IPS)
    return told


def ready(server: Server, namespace: str) -> bool:
    return server.condition(namespace, "Ready").get("status") == "True"


def test_from_apply_to_deletion(server: Server, namespace: str, operators: Operators) -> None:
    operators.start("--no-leader-election")
    server.create(namespace, parallelism={"nodes": 2}, drain={"timeoutSeconds": 1, "endpointSeconds": 1})
    formed(server, namespace, "llm-0-e1-0", "llm-0-e1-1")
    server.until(lambda: ready(server, namespace))
    for name in ("llm-0-e1-0", "llm-0-e1-1"):
        server.until(lambda name=name: roster(server, namespace, name))
        assert roster(server, namespace, name) == "10.1.0.1,10.1.0.2"
    found = server.get(names.KIND, namespace, "llm")
    assert found is not None and found["status"]["observedGeneration"] == 1
    assert found["status"]["groups"][0]["members"][1]["ip"] == "10.1.0.2"
    scale = server.request("GET", f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}/llm/scale")
    assert scale["status"]["replicas"] == 1 and names.RANK in scale["status"]["selector"]
    told = {"GroupCreated", "GroupFormed", "GroupReady"}
    server.until(lambda: told <= {event["reason"] for event in server.objects("Event", namespace)})

    server.delete("Pod", namespace, "llm-0-e1-1", grace=0)
    server.until(lambda: server.pods(namespace) == ["llm-0-e2-0", "llm-0-e2-1"])
    found = server.get(names.KIND, namespace, "llm")
    assert found is not None and found["status"]["groups"][0]["restarts"] == 1

    server.delete(names.KIND, namespace, "llm")
    server.until(lambda: not server.pods(namespace))
    for pod in server.objects("Pod", namespace):  # nobody plays the kubelet that would end them
        server.delete("Pod", namespace, pod["metadata"]["name"], grace=0)
    server.until(lambda: server.get(names.KIND, namespace, "llm") is None)


def test_drift_is_repaired(server: Server, namespace: str, operators: Operators) -> None:
    operators.start("--no-leader-election")
    server.create(namespace)
    formed(server, namespace, "llm-0-e1-0")
    server.until(lambda: ready(server, namespace))
    server.patch("Service", namespace, "llm", {"spec": {"selector": {"more": "x", names.RANK: "1"}}})

    def selector() -> dict[str, str]:
        service = server.get("Service", namespace, "llm")
        return dict(service["spec"]["selector"]) if service else {}

    server.until(lambda: selector() == names.leader_selector("llm"))
    server.delete("PodDisruptionBudget", namespace, "llm")
    server.until(lambda: server.get("PodDisruptionBudget", namespace, "llm"))
    # A pod whose labels are taken off is not lost: they are put back.
    server.patch("Pod", namespace, "llm-0-e1-0", {"metadata": {"labels": {names.DEPLOYMENT: None}}})

    def label() -> str:
        pod = server.get("Pod", namespace, "llm-0-e1-0")
        return pod["metadata"]["labels"].get(names.DEPLOYMENT, "") if pod else ""

    server.until(lambda: label() == "llm")
    assert server.pods(namespace) == ["llm-0-e1-0"]


def test_a_restarted_operator_changes_nothing(server: Server, namespace: str, operators: Operators) -> None:
    first = operators.start("--no-leader-election")
    server.create(namespace, replicas=2)
    formed(server, namespace, "llm-0-e1-0", "llm-1-e2-0")
    server.until(lambda: ready(server, namespace))
    server.until(lambda: server.condition(namespace, "Progressing")["reason"] == "Complete")
    server.until(lambda: all(roster(server, namespace, pod) for pod in ("llm-0-e1-0", "llm-1-e2-0")))
    before = {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in server.objects("Pod", namespace)}
    status = server.get(names.KIND, namespace, "llm")
    first.kill()
    second = operators.start("--no-leader-election")
    # Something that shows the second one at work.
    server.delete("PodDisruptionBudget", namespace, "llm")
    server.until(lambda: server.get("PodDisruptionBudget", namespace, "llm"))
    after = {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in server.objects("Pod", namespace)}
    assert after == before and server.get(names.KIND, namespace, "llm") == status
    # It found all else as it should be.
    assert second.log.count("DriftRepaired") == 1
    assert "DriftRepaired: not as it should be: PodDisruptionBudget llm\n" in second.log
    second.kill(signal.SIGTERM)
    assert second.process.returncode == 0


def test_failover(server: Server, namespace: str, operators: Operators) -> None:
    first, second = operators.start(), operators.start()

    def holder() -> str:
        lease = server.get("Lease", namespace, "oarlock-operator")
        return str(lease["spec"]["holderIdentity"]) if lease else ""

    server.until(lambda: "leads" in first.log or "leads" in second.log)
    leader, other = (first, second) if "leads" in first.log else (second, first)
    held = holder()
    server.create(namespace)
    server.until(lambda: server.pods(namespace) == ["llm-0-e1-0"])
    assert "leads" not in other.log
    leader.kill()  # without giving the lease back
    server.patch(names.KIND, namespace, "llm", {"spec": {"replicas": 2}})
    server.until(lambda: server.pods(namespace) == ["llm-0-e1-0", "llm-1-e2-0"], seconds=17)
    assert holder() not in ("", held)
    other.kill(signal.SIGTERM)
    assert holder() == ""


def test_a_leader_that_wakes_up_too_late_does_no_harm(server: Server, namespace: str, operators: Operators) -> None:
    first = operators.start()
    server.until(lambda: "leads" in first.log)
    server.create(namespace)
    formed(server, namespace, "llm-0-e1-0")
    server.until(lambda: ready(server, namespace))
    first.process.send_signal(signal.SIGSTOP)
    second = operators.start()
    server.until(lambda: "leads" in second.log, seconds=17)
    server.delete("Pod", namespace, "llm-0-e1-0", grace=0)
    formed(server, namespace, "llm-0-e2-0")
    server.until(lambda: ready(server, namespace))
    first.process.send_signal(signal.SIGCONT)
    first.process.wait(20)
    assert first.process.returncode == 1
    assert server.pods(namespace) == ["llm-0-e2-0"]
    found = server.get(names.KIND, namespace, "llm")
    assert found is not None and found["status"]["epoch"] == 2


BAD_SPECS = [
    ({"model": {"source": "ftp://x"}}, "model.source must be hf://org/name"),
    ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "no group could ever be replaced"),
    ({"sharedMemory": "1Gi", "parallelism": {"gpusPerNode": 1}}, "sharedMemory must be at least 5Gi with GPUs"),
    ({"server": {"maxContext": 10, "maxOutputTokens": 20}}, "must not exceed server.maxContext"),
    ({"resources": {"limits": {"memory": "1Gigi"}}}, "spec.resources.limits.memory in body should match"),
    ({"replicas": -1}, "should be greater than or equal to 0"),
]


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS)
def test_bad_specs_are_refused_by_the_api_server(
    server: Server, namespace: str, spec: dict[str, object], message: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.create(namespace, **spec)
    with refused.value as answer:
        assert answer.code == 422 and message in answer.read().decode()


def test_names_too_long_are_refused(server: Server, namespace: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.create(namespace, "a" * 41)
    with refused.value as answer:
        assert "metadata.name must be at most 40" in answer.read().decode()


def test_release_lets_everything_go(server: Server, namespace: str, operators: Operators) -> None:
    operator = operators.start()
    server.create(namespace)
    server.until(lambda: server.pods(namespace) == ["llm-0-e1-0"])
    operator.kill(signal.SIGTERM)
    assert operators.release() == 0
    found = server.get(names.KIND, namespace, "llm")
    assert found is not None and not found["metadata"].get("finalizers")
    assert server.get("Lease", namespace, "oarlock-operator") is None
