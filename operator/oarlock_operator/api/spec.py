"""`spec` of a ModelDeployment: what a user asks for. Each field has a description, a bound and mostly a default."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from oarlock_operator.api.model import ApiModel, Rule
from oarlock_operator.api.quantity import PATTERN, amount
from oarlock_operator.api.server import SecretKey, Server

Name = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[str, Field(pattern=PATTERN, max_length=20)]
IntOrQuantity = Annotated[str | int, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]
Seconds = Annotated[int, Field(ge=1, le=86400)]
Uri = Annotated[str, Field(min_length=1, max_length=2048)]

_SOURCE = r"^((hf|https?|pypi)://[^\s]+|/[^\s]*)$"
_SOURCE_FORMS = "must be hf://org/name[@revision], http(s)://…, pypi://package[==version][/file] or /a/path in the pod"


def _is_source(text: str) -> bool:
    return re.match(_SOURCE, text) is not None


class Cache(ApiModel):
    """Where the model's files lie. By default each pod has a folder of its own that goes when the pod goes."""

    claim_name: Name | None = None
    """An existing PersistentVolumeClaim, shared by all pods. Files that are complete are not fetched again."""
    size: Quantity | None = None
    """Most that the model's files may take; the size of the claim, where one is made."""
    storage_class_name: Name | None = None
    """Makes a claim of `size` from this storage class, shared by all pods and removed with the ModelDeployment."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteMany"
    """How pods may mount the claim that is made. ReadWriteMany unless all pods run on one node."""
    rules = (
        Rule(
            "!has(self.claimName) || !has(self.storageClassName)",
            "model.cache: give claimName (a claim that exists) or storageClassName (a claim to make), not both",
            lambda s: s.claim_name is None or s.storage_class_name is None,
        ),
        Rule(
            "!has(self.storageClassName) || has(self.size)",
            "model.cache.size is needed with storageClassName: it is the size of the claim",
            lambda s: s.storage_class_name is None or s.size is not None,
        ),
    )


class Speculative(ApiModel):
    """Speculative decoding: a draft proposes tokens that the model checks several at a time."""

    method: Literal["inference_with_reference", "eagle", "mtp"]
    """How drafts are made (SPECULATE_METHOD)."""
    source: Uri | None = None
    """The draft model, in the forms of model.source. Needed by eagle and mtp (SPECULATE_MODEL_PATH)."""
    quantization: Literal["weight_only_int8", "weight_only_int4"] | None = None
    """How the draft's weights are held (SPECULATE_MODEL_QUANT_TYPE)."""
    max_draft_tokens: Annotated[int | None, Field(ge=1, le=5)] = None
    """Tokens proposed at a time (SPECULATE_MAX_DRAFT_TOKEN_NUM)."""
    max_ngram_size: Annotated[int | None, Field(ge=1, le=64)] = None
    """Longest n-gram looked for in the prompt (SPECULATE_MAX_NGRAM_SIZE)."""
    rules = (
        Rule(
            "self.method == 'inference_with_reference' || has(self.source)",
            "model.speculative.source is needed with method eagle or mtp: they run a draft model",
            lambda s: s.method == "inference_with_reference" or s.source is not None,
        ),
        Rule(
            f"!has(self.source) || self.source.matches(r'{_SOURCE}')",
            f"model.speculative.source {_SOURCE_FORMS}",
            lambda s: s.source is None or _is_source(s.source),
        ),
    )


class Model(ApiModel):
    """The model that is served."""

    source: Uri
    """Where it comes from: hf://org/name[@revision], http(s)://…, pypi://package[==version][/file], or /a/path in the
    pod (in the image or on a mounted claim)."""
    name: Annotated[str | None, Field(min_length=1, max_length=253)] = None
    """The name clients ask for. By default the ModelDeployment's own."""
    token_secret: SecretKey | None = None
    """Secret with the token that the source asks for (Hugging Face and its mirrors)."""
    cache: Cache = Field(default_factory=Cache)
    """Where its files are kept in the pod."""
    host_path: Annotated[str | None, Field(pattern=r"^/[^\s]*$", max_length=1024)] = None
    """A folder of the node to keep the files in. Refused unless the operator was started with --allow-host-path:
    who may write a node's folder can take over the node."""
    speculative: Speculative | None = None
    """Speculative decoding. None: off."""
    rules = (
        Rule(f"self.source.matches(r'{_SOURCE}')", f"model.source {_SOURCE_FORMS}", lambda s: _is_source(s.source)),
        Rule(
            "!has(self.hostPath) || (!has(self.cache.claimName) && !has(self.cache.storageClassName))",
            "model: give hostPath or a claim in model.cache, not both",
            lambda s: s.host_path is None or (s.cache.claim_name is None and s.cache.storage_class_name is None),
        ),
    )


class Parallelism(ApiModel):
    """How one copy of the model is spread. MP_NNODE = nodes; MP_NUM = nodes x max(gpusPerNode, 1)."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that serve one copy together: a group."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of each pod. 0: the model runs on CPUs."""
    gpu_resource: Name = "nvidia.com/gpu"
    """The resource that GPUs are asked for by."""

    @property
    def ranks(self) -> int:
        """MP_NUM: ranks of the whole group."""
        return self.nodes * max(self.gpus_per_node, 1)


class Resources(ApiModel):
    """Requests and limits of a container, as in a pod. GPUs are added from parallelism."""

    requests: Annotated[dict[str, IntOrQuantity], Field(max_length=32)] = Field(default_factory=dict)
    """What is set aside for it, for example {cpu: 4, memory: 16Gi}."""
    limits: Annotated[dict[str, IntOrQuantity], Field(max_length=32)] = Field(default_factory=dict)
    """What it may not exceed."""


class Download(ApiModel):
    """How the model is fetched, by an init container of the runtime image."""

    resources: Resources = Field(default_factory=Resources)
    """Requests and limits of the download alone."""


class Toleration(ApiModel):
    """As in a pod's spec."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; none matches all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; none matches all."""
    toleration_seconds: int | None = None
    """For NoExecute: how long the pod stays."""


class TopologySpread(ApiModel):
    """Spreads groups over a topology. The label selector is filled in."""

    topology_key: Name
    """Node label whose values are the places, for example topology.kubernetes.io/zone."""
    max_skew: Annotated[int, Field(ge=1, le=1000)] = 1
    """Largest difference in pods between two places."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """What happens when it can't be kept."""


class Scheduling(ApiModel):
    """Where pods run."""

    node_selector: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] = ()
    """Taints the pods accept."""
    affinity: Annotated[
        dict[str, Any] | None, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = None
    """Affinity as in a pod's spec."""
    topology_spread: Annotated[tuple[TopologySpread, ...], Field(max_length=16)] = ()
    """How groups are spread over zones or nodes."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods."""
    scheduler_name: Name | None = None
    """Scheduler that places the pods."""


class Probes(ApiModel):
    """Timing of the probes, all on HEALTH_HTTP_PORT."""

    startup_seconds: Annotated[int, Field(ge=10, le=86400)] = 1800
    """Longest time from the container's start until /v2/health/ready answers: loading the weights counts, fetching
    them doesn't."""
    period_seconds: Annotated[int, Field(ge=1, le=300)] = 5
    """Time between two readiness or liveness probes."""
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 3
    """Time in which a probe must be answered."""
    readiness_failures: Annotated[int, Field(ge=1, le=100)] = 2
    """Probes that must fail in a row before the leader gets no more requests."""
    liveness_failures: Annotated[int, Field(ge=1, le=100)] = 6
    """Probes that must fail in a row before the server is restarted."""


class EnvVar(ApiModel):
    """An environment variable, as in a pod's spec. It wins over one that the operator sets."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=32768)] | None = None
    """Its value."""
    value_from: Annotated[
        dict[str, Any] | None, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = None
    """Where its value comes from: secretKeyRef, configMapKeyRef, fieldRef or resourceFieldRef."""
    rules = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "env: give value or valueFrom, not both",
            lambda s: s.value is None or s.value_from is None,
        ),
    )


class LocalReference(ApiModel):
    """An object in the deployment's namespace."""

    name: Name
    """Its name."""


class Rollout(ApiModel):
    """How groups are replaced when the spec changes."""

    max_unavailable: Annotated[int, Field(ge=0, le=1000)] = 0
    """Groups that may be missing during an update. Old groups that don't serve are replaced without counting here."""
    max_surge: Annotated[int, Field(ge=0, le=1000)] = 1
    """Groups that may exist beyond `replicas` during an update. 0 where no spare GPUs exist; then maxUnavailable must
    be 1 or more."""
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=604800)] = 3600
    """An update that makes no progress for so long is reported as failed (Progressing=False)."""
    paused: bool = False
    """Keeps old groups as they are; new and remade groups still take the new spec."""
    rules = (
        Rule(
            "self.maxSurge > 0 || self.maxUnavailable > 0",
            "rollout: maxSurge and maxUnavailable must not both be 0, or no group could ever be replaced",
            lambda s: s.max_surge > 0 or s.max_unavailable > 0,
        ),
    )


class Restart(ApiModel):
    """What happens when a member of a group is lost: the whole group is remade, not too often."""

    budget: Annotated[int, Field(ge=1, le=50)] = 5
    """Restarts of one group within the window. When they are used up the group is Degraded and is tried again only
    when the oldest of them has left the window, or the spec changes."""
    window_seconds: Annotated[int, Field(ge=60, le=604800)] = 3600
    """How long a restart counts."""
    backoff_seconds: Annotated[int, Field(ge=1, le=3600)] = 5
    """Pause before the second restart in a window; doubled for each further one. The first is at once."""
    max_backoff_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """Longest pause."""
    rules = (
        Rule(
            "self.backoffSeconds <= self.maxBackoffSeconds",
            "restart.backoffSeconds must not exceed restart.maxBackoffSeconds",
            lambda s: s.backoff_seconds <= s.max_backoff_seconds,
        ),
    )


class Drain(ApiModel):
    """How a pod leaves that is replaced or scaled away."""

    endpoint_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """How long it goes on accepting requests, until load balancers know that it is leaving."""
    timeout_seconds: Seconds | None = None
    """How long running requests may then take. By default server.requestTimeoutSeconds."""


class ServiceSpec(ApiModel):
    """The Service that clients call."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service."""
    annotations: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    """Annotations of the Service, for load balancers."""


class ModelDeploymentSpec(ApiModel):
    """What a user asks for."""

    model: Model
    """The model that is served."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Copies of the model, each served by one group of pods."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """How one copy is spread over nodes and GPUs."""
    server: Server = Field(default_factory=Server)
    """Settings and limits of the server."""
    image: Annotated[str | None, Field(min_length=1, max_length=1024)] = None
    """Image of the server; by default the operator's choice for CPUs or GPUs."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    image_pull_secrets: Annotated[tuple[LocalReference, ...], Field(max_length=16)] = ()
    """Secrets for pulling it."""
    resources: Resources = Field(default_factory=Resources)
    """Requests and limits of the server in each pod."""
    download: Download = Field(default_factory=Download)
    """How the model is fetched."""
    scheduling: Scheduling = Field(default_factory=Scheduling)
    """Where pods run."""
    shared_memory: Quantity = "5Gi"
    """Size of /dev/shm, which is memory: at least 5Gi with GPUs."""
    probes: Probes = Field(default_factory=Probes)
    """Timing of the probes."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] = ()
    """More environment variables of the server."""
    service: ServiceSpec = Field(default_factory=ServiceSpec)
    """The Service that clients call."""
    service_account_name: Name | None = None
    """ServiceAccount of the pods. No token is mounted unless one is named."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How groups are replaced."""
    restart: Restart = Field(default_factory=Restart)
    """How broken groups are remade."""
    drain: Drain = Field(default_factory=Drain)
    """How pods leave."""
    rules = (
        Rule(
            "self.parallelism.gpusPerNode == 0 || quantity(self.sharedMemory).compareTo(quantity('5Gi')) >= 0",
            "sharedMemory must be at least 5Gi with GPUs: the server may fail to start with less",
            lambda s: s.parallelism.gpus_per_node == 0 or amount(s.shared_memory) >= amount("5Gi"),
        ),
        Rule(
            "self.parallelism.nodes == 1 || self.model.cache.accessMode != 'ReadWriteOncePod'",
            "model.cache.accessMode ReadWriteOncePod lets one pod in, but parallelism.nodes asks for more",
            lambda s: s.parallelism.nodes == 1 or s.model.cache.access_mode != "ReadWriteOncePod",
        ),
        Rule(
            "(has(oldSelf.model.cache.storageClassName) ? oldSelf.model.cache.storageClassName : '') == "
            "(has(self.model.cache.storageClassName) ? self.model.cache.storageClassName : '')",
            "model.cache.storageClassName can't change: make a new ModelDeployment, or use claimName",
        ),
    )

    @property
    def drain_seconds(self) -> int:
        """Time that running requests get when a pod leaves."""
        return self.drain.timeout_seconds or self.server.request_timeout_seconds

    @property
    def grace_seconds(self) -> int:
        """terminationGracePeriodSeconds: until endpoints have moved, then the drain, then some to end the processes."""
        return self.drain.endpoint_seconds + self.drain_seconds + 15
