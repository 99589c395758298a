"""The pod of a group: environment, roster, security, probes, volumes."""

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from operator_support.builders import deployment

from oarlock_operator.api import names
from oarlock_operator.render.common import revision
from oarlock_operator.render.pod import pod, roster
from oarlock_operator.render.settings import RenderSettings

SETTINGS = RenderSettings()


def render(rank: int = 0, **spec: Any) -> dict[str, Any]:
    return pod(deployment(**spec), group=1, epoch=4, rank=rank, settings=SETTINGS)


def server(**spec: Any) -> dict[str, Any]:
    (container,) = render(**spec)["spec"]["containers"]
    return dict(container)


def env(container: dict[str, Any]) -> dict[str, Any]:
    names_seen = [variable["name"] for variable in container["env"]]
    assert len(names_seen) == len(set(names_seen))
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


def test_names_and_labels() -> None:
    found = render(rank=1, parallelism={"nodes": 2})
    assert found["metadata"]["name"] == "llm-1-e4-1"
    assert found["spec"]["hostname"] == "llm-1-1"
    assert found["spec"]["subdomain"] == "llm-members"
    labels = found["metadata"]["labels"]
    assert [labels[name] for name in (names.GROUP_INDEX, names.EPOCH, names.RANK)] == ["1", "4", "1"]
    assert found["metadata"]["ownerReferences"][0]["uid"] == "uid-md"


def test_paddle_variables() -> None:
    found = env(server(parallelism={"nodes": 2, "gpusPerNode": 8}))
    assert (found["MP_NNODE"], found["MP_NUM"]) == ("2", "16")
    assert found["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert found["POD_IPS"]["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.POD_IPS}']"
    assert found["POD_0_IP"]["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.POD_0_IP}']"
    assert found["HOST_IP"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert found["OARLOCK_GROUP_EPOCH"]["fieldRef"]["fieldPath"] == f"metadata.labels['{names.EPOCH}']"
    for _, variable, port in names.PORTS:
        assert found[variable] == str(port)


def test_limits_under_paddle_names() -> None:
    limits = {
        "maxSequences": 64, "maxContext": 8192, "maxOutputTokens": 1024, "queueLimit": 200, "kvCacheSequences": 40,
        "kvPromptShare": 0.75, "kvCacheDtype": "auto", "kvMemory": "2Gi",
        "streaming": False, "quantization": "int8", "prefixCache": True,
    }  # fmt: skip
    found = env(server(server=limits))
    wanted = {
        "BATCH_SIZE": "64", "MAX_SEQ_LEN": "8192", "MAX_DEC_LEN": "1024", "MAX_CACHED_TASK_NUM": "200",
        "BLOCK_BS": "40.0", "BLOCK_RATIO": "0.75", "OARLOCK_KV_MEMORY": "2147483648", "DISABLE_STREAMING": "1",
        "OARLOCK_QUANTIZATION": "int8", "OARLOCK_PREFIX_CACHE": "1", "OARLOCK_REQUEST_TIMEOUT": "300",
        "OARLOCK_DRAIN_SECONDS": "300",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert "MAX_PREFILL_BATCH" not in found


def test_users_variables_win() -> None:
    found = env(server(env=[{"name": "DEVICE", "value": "x"}, {"name": "HF_ENDPOINT", "value": "http://mirror"}]))
    assert (found["DEVICE"], found["HF_ENDPOINT"]) == ("x", "http://mirror")


def test_download_comes_first_then_the_roster() -> None:
    model = {"source": "hf://org/big@v1", "tokenSecret": {"name": "hub"}}
    found = render(model=model, env=[{"name": "HF_ENDPOINT", "value": "http://mirror"}])
    first, last = found["spec"]["initContainers"]
    assert first["command"][:3] == ["oarlock", "download", "hf://org/big@v1"]
    assert last["name"] == "roster"
    assert env(first)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert env(first)["HF_ENDPOINT"] == "http://mirror"
    main = env(found["spec"]["containers"][0])
    assert first["command"][3:5] == ["--cache-dir", main["OARLOCK_CACHE_DIR"]]
    assert main["MODEL_DIR"] == "hf://org/big@v1"
    assert "HF_TOKEN" not in main


def test_the_roster_container_heeds_sigterm() -> None:
    (roster,) = [container for container in render()["spec"]["initContainers"] if container["name"] == "roster"]
    with subprocess.Popen(roster["command"]) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & 1 << signal.SIGTERM - 1:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM


def test_a_path_needs_no_download() -> None:
    found = render(model={"source": "/models/mine", "cache": {"claimName": "weights"}})
    assert [container["name"] for container in found["spec"]["initContainers"]] == ["roster"]
    assert env(found["spec"]["containers"][0])["MODEL_DIR"] == "/models/mine"
    assert found["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "weights"}


def test_restricted_security() -> None:
    spec = render()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"]
    for container in [*spec["initContainers"], *spec["containers"]]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
    assert spec["enableServiceLinks"] is False and spec["automountServiceAccountToken"] is False
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_probes_ports_and_leaving() -> None:
    container = server(probes={"startupSeconds": 600}, drain={"endpointSeconds": 7, "timeoutSeconds": 60})
    assert [port["name"] for port in container["ports"]] == ["http", "grpc", "metrics", "health", "inter-proc"]
    assert container["startupProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 600
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert render(drain={"endpointSeconds": 7, "timeoutSeconds": 60})["spec"]["terminationGracePeriodSeconds"] == 82


def test_gpus_and_shared_memory() -> None:
    found = render(parallelism={"gpusPerNode": 4}, sharedMemory="32Gi", resources={"limits": {"memory": "64Gi"}})
    (container,) = found["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "4"}
    assert container["image"] == SETTINGS.gpu_image
    shm = next(volume for volume in found["spec"]["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}


def test_members_sit_on_different_nodes() -> None:
    one = render()["spec"]
    assert "affinity" not in one
    rules = render(parallelism={"nodes": 2})["spec"]["affinity"]["podAntiAffinity"]
    (rule,) = rules["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"][names.EPOCH] == "4"


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ({"replicas": 3}, False),
        ({"rollout": {"maxSurge": 2}}, False),
        ({"restart": {"budget": 2}}, False),
        ({"parallelism": {"nodes": 1}}, False),
        ({"parallelism": {"nodes": 2}}, True),
        ({"server": {"maxSequences": 3}}, True),
        ({"image": "other"}, True),
    ],
)
def test_revision_changes_only_with_what_reaches_the_pods(spec: dict[str, Any], changes: bool) -> None:
    assert (revision(deployment(**spec), SETTINGS) != revision(deployment(), SETTINGS)) is changes


def test_roster_keeps_the_order_of_ranks() -> None:
    assert roster(["10.0.0.2", "10.0.0.1"], ["a", "b"]) == {
        names.POD_IPS: "10.0.0.2,10.0.0.1",
        names.POD_0_IP: "10.0.0.2",
        names.ROSTER_UIDS: "a,b",
    }
