"""What decisions consist of. Each action can be carried out twice without harm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from oarlock_operator.api.status import ModelDeploymentStatus


@dataclass(frozen=True)
class Apply:
    """Server-side apply of a standing object."""

    body: Mapping[str, Any]


@dataclass(frozen=True)
class Prune:
    """A merge patch that takes away what somebody added to a field that is ours alone."""

    kind: str
    name: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Delete:
    """Removes a standing object that is no longer wanted."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class CreatePod:
    """Makes a pod. That it exists already is no error: its name says which formation it belongs to."""

    body: Mapping[str, Any]


@dataclass(frozen=True)
class WriteRoster:
    """Tells one member of a group where all are. Refused when the pod is no longer the one that was observed."""

    pod: str
    uid: str
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class DeletePod:
    """Ends a pod; `grace` None gives it the time its spec asks for."""

    pod: str
    uid: str
    grace: int | None = None


@dataclass(frozen=True)
class SetFinalizer:
    """Adds or removes our finalizer."""

    present: bool


Action = Apply | Prune | Delete | CreatePod | WriteRoster | DeletePod | SetFinalizer


@dataclass(frozen=True)
class Event:
    """Something a person may want to know, once."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class Decision:
    """The status is written first: what it says about epochs and draining must be known before pods are touched."""

    status: ModelDeploymentStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    wake_after: float | None = None  # seconds until time alone may change the decision
    downloading: tuple[str, ...] = field(default=())  # pods whose progress should be looked at
