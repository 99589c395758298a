"""`status` of a ModelDeployment: what the operator observed and has decided.

Groups' epochs, restarts and draining are written here before anything is done about them, so that an operator that is
killed in between goes on where it stopped. Everything else is computed anew each time.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from oarlock_operator.api.model import StatusModel


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]

ConditionType = Literal["Ready", "Available", "Progressing", "ModelCached", "Degraded"]
ConditionStatus = Literal["True", "False", "Unknown"]
GroupState = Literal["Waiting", "Pending", "Pulling", "Downloading", "Forming", "Loading", "Ready", "Draining"]
MemberState = Literal[
    "Pending",
    "Pulling",
    "Downloading",
    "DownloadFailed",
    "WaitingForPeers",
    "Loading",
    "Ready",
    "NotReady",
    "Failed",
    "Terminating",
]


class Condition(StatusModel):
    """As everywhere in Kubernetes."""

    type: ConditionType
    """What it is about."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=128)]
    """Why, in one word that programs may rely on."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, for people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: int | None = None
    """The spec's generation it speaks about."""


class Member(StatusModel):
    """One pod of a group."""

    rank: int
    """Its rank among the nodes of the group; 0 is the leader."""
    pod: str
    """Name of the pod."""
    state: MemberState
    """What it is doing."""
    node: str | None = None
    """Where it runs."""
    ip: str | None = None
    """Its address."""
    restarts: int = 0
    """Restarts of its server container."""
    message: Annotated[str | None, Field(max_length=1024)] = None
    """What is wrong with it."""


class Group(StatusModel):
    """One copy of the model: the pods that serve it together."""

    index: int
    """Number of the group."""
    epoch: int
    """Number of this formation; a group that is remade gets a new one, and its members never meet those of the old."""
    revision: str
    """Which version of the spec it was made from."""
    state: GroupState
    """What it is doing."""
    message: Annotated[str | None, Field(max_length=1024)] = None
    """Why it isn't ready, or was remade last."""
    restarts: int = 0
    """How often it was remade because a member was lost or failed."""
    restart_times: Annotated[tuple[Time, ...], Field(max_length=64)] = ()
    """When, within the restart window."""
    last_restart_reason: Annotated[str | None, Field(max_length=1024)] = None
    """Why it was remade last."""
    not_before: Time | None = None
    """It is formed again no earlier than then."""
    started_time: Time | None = None
    """When this epoch began."""
    formed_time: Time | None = None
    """When all members of this epoch knew each other's addresses."""
    ready_time: Time | None = None
    """When this epoch first was ready."""
    members: Annotated[tuple[Member, ...], Field(max_length=64)] = ()
    """Its pods by rank."""


class DownloadProgress(StatusModel):
    """How far the fetching of the model is, over all members that are at it."""

    bytes: int
    """Bytes fetched."""
    total: int | None = None
    """Bytes to fetch, where known."""
    rate: int | None = None
    """Bytes per second."""
    remaining_seconds: int | None = None
    """Until the slowest member is through."""
    slowest_member: str | None = None
    """The pod that is furthest from the end."""
    summary: str = ""
    """The same for people."""


class ModelDeploymentStatus(StatusModel):
    """What the operator observed."""

    observed_generation: int | None = None
    """The spec's generation this status speaks about."""
    replicas: int = 0
    """Groups that exist, those that leave not counted."""
    ready_replicas: int = 0
    """Groups that serve."""
    updated_replicas: int = 0
    """Groups made from the present spec."""
    selector: str = ""
    """Selects the leaders, for autoscalers."""
    revision: str = ""
    """The version of the spec that groups are made from now."""
    epoch: int = 0
    """The highest epoch handed out."""
    progress_time: Time | None = None
    """When an update or a start last came forward."""
    url: str | None = None
    """Where clients in the cluster find the OpenAI API."""
    download: DownloadProgress | None = None
    """How far the fetching of the model is. Absent when nobody fetches."""
    groups: Annotated[
        tuple[Group, ...],
        Field(
            max_length=2000,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]},
        ),
    ] = ()
    """The groups by number."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """Ready, Available, Progressing, ModelCached and Degraded."""
