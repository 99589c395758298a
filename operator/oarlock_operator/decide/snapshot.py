"""What was observed of one deployment at one moment: frozen, made from JSON, read by every decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment

Object = Mapping[str, Any]
_PROGRAM = "oarlock: "  # what the runtime's last words begin with


@dataclass(frozen=True)
class Container:
    """The state of one container, init or not."""

    name: str
    restarts: int = 0
    running: bool = False
    ready: bool = False
    waiting_reason: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    exit_message: str = ""

    @property
    def done(self) -> bool:
        return self.exit_code == 0 and not self.running and not self.waiting_reason


@dataclass(frozen=True)
class Progress:
    """How far one pod's download is: bytes, bytes per second."""

    bytes: int
    total: int | None = None
    rate: int | None = None


@dataclass(frozen=True)
class Pod:
    """One pod of ours. `roster_ips` and `roster_uids` are what its annotations say, empty before it is formed."""

    name: str
    uid: str
    group: int
    epoch: int
    rank: int
    revision: str
    phase: str = "Pending"
    ip: str = ""
    node: str = ""
    ready: bool = False
    unschedulable: str = ""
    deletion_due: datetime | None = None  # when its grace ends; None while nobody deletes it
    init: tuple[Container, ...] = ()
    server: Container = Container(names.SERVER_CONTAINER)
    roster_ips: str = ""
    roster_uids: str = ""
    reason: str = ""  # why the pod as a whole failed, e.g. Evicted

    @property
    def deleting(self) -> bool:
        return self.deletion_due is not None

    @property
    def ended(self) -> bool:
        return self.phase in ("Failed", "Succeeded")

    @property
    def fetched(self) -> bool:
        """Whether all that comes before the roster is through."""
        return all(container.done for container in self.init if container.name != names.ROSTER_CONTAINER)

    @property
    def formed(self) -> bool:
        return bool(self.roster_ips)


@dataclass(frozen=True)
class Snapshot:
    """All that a decision may depend on."""

    now: datetime
    deployment: ModelDeployment
    deletion_time: datetime | None = None
    pods: tuple[Pod, ...] = ()
    objects: Mapping[tuple[str, str], Object] = field(default_factory=dict)  # (kind, name): as observed
    progress: Mapping[str, Progress] = field(default_factory=dict)  # by pod name
    refused: str = ""  # why the API server lately refused to create a pod: a quota, a policy, …
    unfinished: bool = False  # the last round left some of its actions: what is still missing is no drift


def parse_time(text: str | None) -> datetime | None:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text) if text else None


def pod_from(body: Object) -> Pod | None:
    """Reads a pod; None when it isn't one of ours (its labels are missing or damaged)."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    try:
        group, epoch, rank = (int(labels[name]) for name in (names.GROUP_INDEX, names.EPOCH, names.RANK))
    except (KeyError, ValueError):
        return None
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    states = {state["name"]: state for state in status.get("containerStatuses") or ()}
    init_states = {state["name"]: state for state in status.get("initContainerStatuses") or ()}
    return Pod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        group=group,
        epoch=epoch,
        rank=rank,
        revision=labels.get(names.REVISION, ""),
        phase=status.get("phase", "Pending"),
        ip=status.get("podIP", ""),
        node=spec.get("nodeName", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        deletion_due=parse_time(metadata.get("deletionTimestamp")),
        init=tuple(_container(c["name"], init_states.get(c["name"])) for c in spec.get("initContainers") or ()),
        server=_container(names.SERVER_CONTAINER, states.get(names.SERVER_CONTAINER)),
        roster_ips=annotations.get(names.POD_IPS, ""),
        roster_uids=annotations.get(names.ROSTER_UIDS, ""),
        reason=status.get("reason") or status.get("message") or "",
    )


def _container(name: str, status: Object | None) -> Container:
    if status is None:
        return Container(name)
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    return Container(
        name=name,
        restarts=int(status.get("restartCount") or 0),
        running="running" in state,
        ready=bool(status.get("ready")),
        waiting_reason=waiting.get("reason", "") if waiting else "",
        waiting_message=waiting.get("message", "") if waiting else "",
        exit_code=ended.get("exitCode"),
        exit_message=_last_line(ended.get("message") or ended.get("reason") or ""),
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix(_PROGRAM)[:1000] if lines else ""
