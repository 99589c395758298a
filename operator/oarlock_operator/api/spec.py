"""`spec` of a ModelDeployment: what a user asks for. Each field has a description, a bound and mostly a default."""

from typing import Annotated, Literal

from pydantic import Field

from oarlock_operator.api.model import ApiModel, Rule
from oarlock_operator.api.pods import Download, EnvVar, LocalReference, Probes, Resources, Scheduling, ServiceSpec
from oarlock_operator.api.quantity import amount
from oarlock_operator.api.server import Server
from oarlock_operator.api.source import Model
from oarlock_operator.api.types import Name, Quantity, Seconds


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
            "!has(self.server.dtype) || self.server.dtype != 'float16' || self.parallelism.gpusPerNode > 0",
            "server.dtype float16 needs GPUs: on CPUs give bfloat16 or float32",
            lambda s: s.server.dtype != "float16" or s.parallelism.gpus_per_node > 0,
        ),
        Rule(
            "!has(self.server.dtype) || self.server.dtype != 'float32' || self.parallelism.gpusPerNode == 0",
            "server.dtype float32 is for CPUs: with GPUs give bfloat16 or float16",
            lambda s: s.server.dtype != "float32" or s.parallelism.gpus_per_node == 0,
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
