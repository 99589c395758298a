"""What the spec accepts, refuses, and says when it refuses."""

import pytest
from operator_support.builders import body, deployment

from oarlock_operator.api.deployment import SpecError, parse, parse_status


def test_defaults_are_enough() -> None:
    spec = deployment().spec
    assert (spec.replicas, spec.parallelism.nodes, spec.parallelism.ranks) == (1, 1, 1)
    assert spec.drain_seconds == spec.server.request_timeout_seconds == 300
    assert spec.grace_seconds > spec.drain_seconds


@pytest.mark.parametrize(("nodes", "gpus", "ranks"), [(1, 0, 1), (2, 0, 2), (2, 8, 16), (1, 4, 4)])
def test_ranks(nodes: int, gpus: int, ranks: int) -> None:
    assert deployment(parallelism={"nodes": nodes, "gpusPerNode": gpus}).spec.parallelism.ranks == ranks


BAD = [
    ({"model": {"source": "ftp://x"}}, "model.source must be hf://"),
    ({"model": {}}, "spec.model.source: Field required"),
    ({"replica": 2}, "spec.replica: there is no such field; did you mean replicas?"),
    ({"replicas": -1}, "spec.replicas: Input should be greater than or equal to 0 (given: -1)"),
    ({"sharedMemory": "1Gi", "parallelism": {"gpusPerNode": 1}}, "sharedMemory must be at least 5Gi with GPUs"),
    ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "no group could ever be replaced"),
    ({"model": {"source": "/m", "cache": {"claimName": "a", "storageClassName": "b", "size": "1Gi"}}}, "not both"),
    ({"model": {"source": "/m", "speculative": {"method": "mtp"}}}, "is not available"),
    ({"server": {"kvCacheDtype": "int8"}}, "kvCacheDtype int8 is not available"),
    ({"resources": {"limits": {"memory": "1Gigi"}}}, "spec.resources.limits.memory"),
    ({"server": {"kvMemory": "500m"}}, "spec.server.kvMemory"),
    ({"server": {"kvMemory": "65Ti"}}, "server.kvMemory must be at most 64Ti"),
    ({"server": {"dtype": "float16"}}, "float16 needs GPUs"),
    ({"server": {"dtype": "float32"}, "parallelism": {"gpusPerNode": 1}}, "float32 is for CPUs"),
    ({"server": {"maxContext": 10, "maxOutputTokens": 20}}, "must not exceed server.maxContext"),
    ({"restart": {"backoffSeconds": 20, "maxBackoffSeconds": 10}}, "must not exceed restart.maxBackoffSeconds"),
    ({"env": [{"name": "A", "value": "1", "valueFrom": {}}]}, "give value or valueFrom, not both"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_refusals_name_the_field(spec: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse(body(**spec))
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["Upper", "1st", "a" * 41, "dot.ted", "", "end-"])
def test_names_that_cannot_be_pods(name: str) -> None:
    with pytest.raises(SpecError, match=r"metadata\.name must be at most 40"):
        parse(body(name))


def test_damaged_status_is_empty() -> None:
    assert parse_status({"groups": "nonsense"}).groups == ()
    assert parse_status({"newField": 1, "epoch": 3}).epoch == 3
