"""The environment of the containers in a pod: PaddleNLP's variables, from the spec or from the pod's own fields."""

from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.api.server import Env, SecretKey, Server
from oarlock_operator.render.volumes import MODELS

EnvList = list[dict[str, Any]]


def _value(name: str, value: object) -> dict[str, Any]:
    return {"name": name, "value": str(value)}


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _secret(name: str, key: SecretKey) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}}


def server_environment(deployment: ModelDeployment) -> EnvList:
    """The server container's variables. A variable of `spec.env` takes the place of ours with the same name."""
    spec = deployment.spec
    found = [
        # The server finds in its cache what the download container put there, by the same address.
        _value("MODEL_DIR", spec.model.source),
        _value("OARLOCK_CACHE_DIR", MODELS),
        _value("OARLOCK_SERVED_MODEL_NAME", spec.model.name or deployment.name),
        _value("OARLOCK_HOST", "0.0.0.0"),
        _value("HOME", "/tmp"),
        *(_value(variable, port) for _, variable, port in names.PORTS),
        *_parallelism(deployment),
        # The roster: written as annotations on all members before this container starts.
        _field("POD_IPS", f"metadata.annotations['{names.POD_IPS}']"),
        _field("POD_0_IP", f"metadata.annotations['{names.POD_0_IP}']"),
        _field("HOST_IP", "status.podIP"),
        # Should a member of an earlier formation still be there, the server refuses to meet it.
        _field("OARLOCK_GROUP_EPOCH", f"metadata.labels['{names.EPOCH}']"),
        *_limits(spec.server),
        _value("OARLOCK_DRAIN_SECONDS", spec.drain_seconds),
        _value("OARLOCK_START_TIMEOUT", spec.probes.startup_seconds),
    ]
    if spec.server.api_key_secret is not None:
        found.append(_secret("OARLOCK_API_KEY", spec.server.api_key_secret))
    return _merged(found, deployment)


def download_environment(deployment: ModelDeployment) -> EnvList:
    """The download container's variables: where it is in the group, the source's token, and `spec.env` for proxies."""
    found = [_value("HOME", "/tmp"), *_parallelism(deployment)]
    if deployment.spec.model.token_secret is not None:
        found.append(_secret("HF_TOKEN", deployment.spec.model.token_secret))
    return _merged(found, deployment)


def _parallelism(deployment: ModelDeployment) -> EnvList:
    parallelism = deployment.spec.parallelism
    found = [
        _value("MP_NNODE", parallelism.nodes),
        _value("MP_NUM", parallelism.ranks),
        _field("NODE_RANK", f"metadata.labels['{names.RANK}']"),
        _field("POD_NAME", "metadata.name"),
        _value("DEVICE", "gpu" if parallelism.gpus_per_node else "cpu"),
    ]
    if parallelism.gpus_per_node:
        found.append(_value("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(parallelism.gpus_per_node)))))
    return found


def _limits(server: Server) -> EnvList:
    found = []
    for field, about in Server.model_fields.items():
        value = getattr(server, field)
        for env in about.metadata:
            if isinstance(env, Env) and value is not None:
                found.append(_value(env.name, env.text(value)))
    return found


def _merged(ours: EnvList, deployment: ModelDeployment) -> EnvList:
    by_name = {variable["name"]: variable for variable in ours}
    by_name |= {variable.name: variable.to_wire() for variable in deployment.spec.env}
    return list(by_name.values())
