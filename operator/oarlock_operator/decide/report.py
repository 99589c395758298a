"""What is said about a round: the new status, and events for what has become so since the last one."""

from datetime import datetime, timedelta

from oarlock_operator.api import names
from oarlock_operator.api.status import Condition, Group, ModelDeploymentStatus
from oarlock_operator.decide.actions import Event
from oarlock_operator.decide.conditions import Facts, conditions
from oarlock_operator.decide.groups import GroupView
from oarlock_operator.decide.progress import download_progress
from oarlock_operator.decide.restarts import recent
from oarlock_operator.decide.round import Round

_PROGRESS_PERIOD = 3.0
_TOLD_OF_READY = ("ContainerCreationFailed", "DownloadFailed", "ImagePullFailed", "InsufficientCapacity", "PodsRefused")


def downloading(this: Round) -> tuple[str, ...]:
    """The pods whose progress is worth a look."""
    found = tuple(
        member.pod for view in this.views.values() for member in view.members() if member.state == "Downloading"
    )
    if found:
        this.wakes.append(_PROGRESS_PERIOD)
    return found


def status_of(this: Round, fetching: tuple[str, ...]) -> ModelDeploymentStatus:
    """The status as it is written; `fetching` are the pods that fetch the model."""
    groups = tuple(_finished(this, view) for _, view in sorted(this.views.items()))
    alive = [group for group in groups if group.state != "Draining"]
    serving = [group for group in alive if group.state == "Ready"]
    updated = [group for group in alive if group.revision == this.revision]
    download = download_progress({name: one for name, one in this.snapshot.progress.items() if name in fetching}) or (
        this.status.download if fetching else None
    )
    progress_time = _progress_time(this, len(serving), len(updated))
    facts = Facts(
        this.spec,
        alive,
        len(groups) - len(alive),
        this.revision,
        this.now,
        progress_time,
        download,
        this.snapshot.refused,
    )
    found = conditions(facts, this.status.conditions, this.deployment.generation)
    if any(one.type == "Progressing" and one.status == "True" for one in found):
        due = progress_time + timedelta(seconds=this.spec.rollout.progress_deadline_seconds + 1)
        this.wakes.append(max((due - this.now).total_seconds(), 1.0))
    name, namespace = this.deployment.name, this.deployment.namespace
    return ModelDeploymentStatus(
        observed_generation=this.deployment.generation,
        replicas=len(alive),
        ready_replicas=len(serving),
        updated_replicas=len(updated),
        selector=",".join(f"{key}={value}" for key, value in names.leader_selector(name).items()),
        revision=this.revision,
        epoch=this.epoch,
        progress_time=progress_time,
        url=f"http://{names.leader_service(name)}.{namespace}.svc:9965/v1",
        download=download,
        groups=groups,
        conditions=found,
    )


def _finished(this: Round, view: GroupView) -> Group:
    """A group's record as it goes into the status."""
    state, record = view.state(this.now), view.record
    updates: dict[str, object] = {
        "state": state,
        "members": view.members(),
        "restart_times": recent(record.restart_times, this.spec.restart, this.now),
    }
    if state == "Ready":
        updates |= {"ready_time": record.ready_time or this.now, "not_before": None, "message": None}
    return record.model_copy(update=updates)


def _progress_time(this: Round, serving: int, updated: int) -> datetime:
    before = this.status
    if (
        before.progress_time is None
        or before.observed_generation != this.deployment.generation
        or serving > before.ready_replicas
        or updated > before.updated_replicas
    ):
        return this.now
    return before.progress_time


def transitions(this: Round, status: ModelDeploymentStatus) -> list[Event]:
    """What has become so since the last status."""
    before = {group.index: group for group in this.status.groups}
    found = []
    for group in status.groups:
        old = before.get(group.index)
        was_ready = old is not None and old.epoch == group.epoch and old.state == "Ready"
        if group.state == "Ready" and not was_ready:
            took = (this.now - group.started_time).total_seconds() if group.started_time else 0.0
            found.append(Event("GroupReady", f"group {group.index} serves, {took:.0f} s after it was begun"))
    earlier = {condition.type: condition.reason for condition in this.status.conditions}
    news = [condition for condition in status.conditions if earlier.get(condition.type) != condition.reason]
    return found + [event for condition in news if (event := _event(condition)) is not None]


def _event(condition: Condition) -> Event | None:
    """What a new reason of a condition is worth saying."""
    if condition.type == "Ready" and condition.reason in _TOLD_OF_READY:
        return Event(condition.reason, condition.message, "Warning")
    if condition.reason == "ProgressDeadlineExceeded":
        return Event(condition.reason, condition.message, "Warning")
    if condition.type == "Progressing" and condition.reason == "Complete":
        return Event("RolloutComplete", condition.message)
    return None
