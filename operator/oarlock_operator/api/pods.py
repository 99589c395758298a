"""Parts of the spec that go into the pods as they are: resources, placement, probes, variables."""

from typing import Annotated, Any, Literal

from pydantic import Field

from oarlock_operator.api.model import ApiModel, Rule
from oarlock_operator.api.types import IntOrQuantity, Name


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


class ServiceSpec(ApiModel):
    """The Service that clients call."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service."""
    annotations: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    """Annotations of the Service, for load balancers."""
