"""The decision on one deployment: `decide(snapshot, settings)`.

1. Each group's record in the status is put beside its pods (`groups`). 2. A group that lost a member gets a new epoch
(`restarts`). 3. Scaling and updates choose groups that come, leave or are replaced (`rollout`). 4. For every group the
pods are brought in line with its record: created, told the roster, drained, removed. 5. The status says all of it.
"""

from dataclasses import replace as replaced
from datetime import datetime, timedelta

from oarlock_operator.api import names
from oarlock_operator.api.status import Group, ModelDeploymentStatus
from oarlock_operator.decide.actions import (
    Action,
    Apply,
    CreatePod,
    Decision,
    Delete,
    DeletePod,
    Event,
    Prune,
    SetFinalizer,
    WriteRoster,
)
from oarlock_operator.decide.conditions import Facts, conditions, deleting, invalid, stamped
from oarlock_operator.decide.drift import repair
from oarlock_operator.decide.groups import STUCK, GroupView
from oarlock_operator.decide.progress import download_progress
from oarlock_operator.decide.restarts import exhausted, recent, restarted
from oarlock_operator.decide.rollout import GroupFacts, choose
from oarlock_operator.decide.snapshot import Pod, Snapshot
from oarlock_operator.render.common import revision as revision_of
from oarlock_operator.render.objects import standing_objects
from oarlock_operator.render.pod import pod as render_pod
from oarlock_operator.render.pod import roster
from oarlock_operator.render.settings import RenderSettings

FAILED_GRACE = 5  # seconds for pods that serve nobody any more
_PROGRESS_PERIOD = 3.0
_DELETION_SLACK = timedelta(seconds=60)


def decide(snapshot: Snapshot, settings: RenderSettings) -> Decision:
    """What is to be done now. The same snapshot always gives the same decision."""
    deployment = snapshot.deployment
    if snapshot.deletion_time is not None:
        return _depart(snapshot, settings)
    if deployment.spec.model.host_path is not None and not settings.allow_host_path:
        return _refuse(snapshot, "spec.model.hostPath is refused: the operator was started without --allow-host-path")
    return _Round(snapshot, settings).decision()


def _refuse(snapshot: Snapshot, message: str) -> Decision:
    """Leaves everything as it is and says why."""
    deployment = snapshot.deployment
    found = stamped(invalid(message), deployment.status.conditions, deployment.generation, snapshot.now)
    kept = tuple(old for old in deployment.status.conditions if old.type not in {new.type for new in found})
    status = deployment.status.model_copy(
        update={"conditions": (*found, *kept), "observed_generation": deployment.generation}
    )
    known = any(old.reason == "InvalidSpec" and old.message == message for old in deployment.status.conditions)
    return Decision(status, events=() if known else (Event("InvalidSpec", message, "Warning"),))


def _depart(snapshot: Snapshot, settings: RenderSettings) -> Decision:
    """The deployment is deleted: its groups drain; the finalizer goes with the last pod, or when time is up."""
    deployment = snapshot.deployment
    if names.FINALIZER not in deployment.finalizers:
        return Decision(deployment.status)
    round_ = _Round(snapshot, settings)
    actions = round_.departure()
    left = [pod for pod in snapshot.pods if not _stuck(pod, snapshot)]
    limit = timedelta(seconds=deployment.spec.grace_seconds) + _DELETION_SLACK
    assert snapshot.deletion_time is not None
    over = snapshot.now > snapshot.deletion_time + limit
    if not left or over:
        actions = (*actions, SetFinalizer(False))
    found = stamped(deleting(len(left)), deployment.status.conditions, deployment.generation, snapshot.now)
    kept = tuple(old for old in deployment.status.conditions if old.type not in {new.type for new in found})
    groups = round_.departed_groups()
    status = deployment.status.model_copy(update={"conditions": (*found, *kept), "groups": groups, "ready_replicas": 0})
    return Decision(status, actions, wake_after=5.0)


def _object_of(action: Action) -> str:
    """What a repair is about."""
    match action:
        case Apply(body):
            return f"{body['kind']} {body['metadata']['name']}"
        case Prune(kind, name, _) | Delete(kind, name, _):
            return f"{kind} {name}"
    return type(action).__name__


def _stuck(pod: Pod, snapshot: Snapshot) -> bool:
    return pod.deletion_due is not None and snapshot.now > pod.deletion_due + STUCK


class _Round:
    """The working state of one decision. Everything it reads is in the snapshot."""

    def __init__(self, snapshot: Snapshot, settings: RenderSettings) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.now = snapshot.now
        self.deployment = snapshot.deployment
        self.spec = snapshot.deployment.spec
        self.status = snapshot.deployment.status
        self.revision = revision_of(snapshot.deployment, settings)
        self.epoch = max([self.status.epoch, *(pod.epoch for pod in snapshot.pods)])
        self.actions: list[Action] = []
        self.events: list[Event] = []
        self.wakes: list[float] = []
        self.views = {record.index: self._view(record) for record in self._records()}

    # What is there

    def _records(self) -> list[Group]:
        """The groups that the status knows; those it lost are found again by their pods."""
        known = {record.index: record for record in self.status.groups}
        for pod in sorted(self.snapshot.pods, key=lambda pod: pod.epoch):
            if pod.deleting:
                continue
            record = known.get(pod.group)
            if record is None or (pod.epoch > record.epoch and not record.not_before):
                known[pod.group] = Group(
                    index=pod.group,
                    epoch=pod.epoch,
                    revision=pod.revision,
                    state="Pending",
                    formed_time=self.now if pod.formed else None,
                    started_time=self.now,
                )
        return [known[index] for index in sorted(known)]

    def _view(self, record: Group) -> GroupView:
        mine = [pod for pod in self.snapshot.pods if pod.group == record.index]
        return GroupView(
            record,
            self.spec.parallelism.nodes,
            tuple(pod for pod in mine if pod.epoch == record.epoch),
            tuple(pod for pod in mine if pod.epoch != record.epoch),
        )

    # What is decided

    def decision(self) -> Decision:
        if names.FINALIZER not in self.deployment.finalizers:
            self.actions.append(SetFinalizer(True))
        self._standing_objects()
        for view in list(self.views.values()):
            if view.draining:
                continue
            if reason := view.loss(self.now):
                self._restart(view, reason)
            elif view.missing and not view.formed and view.record.revision != self.revision:
                # The spec it was made from is no longer known.
                self._new_epoch(view.index)
        self._choose()
        for view in list(self.views.values()):
            self._remove_stale(view)
            if view.draining:
                self._drain(view)
            else:
                self._form(view)
        status = self._status()
        return Decision(
            status,
            tuple(self.actions),
            (*self.events, *self._transitions(status)),
            wake_after=min(self.wakes) if self.wakes else None,
            downloading=self._downloading(),
        )

    def _standing_objects(self) -> None:
        repairs = repair(standing_objects(self.deployment, self.settings), self.snapshot.objects)
        self.actions += repairs
        if repairs and self.status.observed_generation == self.deployment.generation:
            wrong = ", ".join(sorted({_object_of(action) for action in repairs}))
            self.events.append(Event("DriftRepaired", f"not as it should be: {wrong}", "Warning"))

    def _restart(self, view: GroupView, reason: str) -> None:
        self.epoch += 1
        record = restarted(view.record, self.epoch, self.revision, reason, self.spec.restart, self.now)
        if exhausted(record, self.spec.restart, self.now):
            count = len(record.restart_times)
            message = f"group {view.index} lost its members {count} times within the window and rests: {reason}"
            self.events.append(Event("RestartBudgetExhausted", message, "Warning"))
        else:
            message = f"group {view.index} is formed again as epoch {self.epoch}: {reason}"
            self.events.append(Event("GroupRestarting", message, "Warning"))
        self.views[view.index] = self._view(record)

    def _choose(self) -> None:
        facts = [
            GroupFacts(
                index=view.index,
                updated=view.record.revision == self.revision,
                ready=view.ready,
                leaving=view.draining,
                holding=any(not _stuck(pod, self.snapshot) for pod in view.pods),
            )
            for view in self.views.values()
        ]
        choice = choose(facts, self.spec.replicas, self.spec.rollout)
        for index in choice.drain:
            record = self.views[index].record.model_copy(update={"state": "Draining", "not_before": None})
            self.views[index] = self._view(record)
            self.events.append(Event("GroupDraining", f"group {index} finishes its requests and leaves"))
        for index in choice.replace:
            self.events.append(Event("GroupReplaced", f"group {index} does not serve and is made from the new spec"))
            # A budget used up by the old spec must not hold up the new one.
            self._new_epoch(index)
        for index in choice.create:
            self._new_epoch(index)

    def _new_epoch(self, index: int) -> None:
        self.epoch += 1
        record = Group(index=index, epoch=self.epoch, revision=self.revision, state="Pending", started_time=self.now)
        self.views[index] = self._view(record)
        self.events.append(Event("GroupCreated", f"group {index} is formed as epoch {self.epoch}"))

    # What is done to the pods

    def _remove_stale(self, view: GroupView) -> None:
        for pod in view.stale:
            if not pod.deleting:
                self.actions.append(DeletePod(pod.name, pod.uid, FAILED_GRACE))

    def _drain(self, view: GroupView) -> None:
        """The leader first: members that serve with it must not go before its requests are finished."""
        leader = view.leader
        if leader is not None and not leader.ended and not _stuck(leader, self.snapshot):
            if not leader.deleting:
                self.actions.append(DeletePod(leader.name, leader.uid, None if leader.ready else FAILED_GRACE))
            self._wake_when_due(leader)
            return
        left = False
        for pod in view.pods:
            if not pod.deleting:
                self.actions.append(DeletePod(pod.name, pod.uid, FAILED_GRACE))
            else:
                self._wake_when_due(pod)
            left = left or not _stuck(pod, self.snapshot)
        if not left:
            del self.views[view.index]
            self.events.append(Event("GroupRemoved", f"group {view.index} is gone"))

    def _form(self, view: GroupView) -> None:
        record = view.record
        if record.not_before is not None and self.now < record.not_before:
            self.wakes.append((record.not_before - self.now).total_seconds())
            return
        for pod in view.pods:
            if pod.ended and not pod.deleting and not view.formed:
                self.actions.append(DeletePod(pod.name, pod.uid, FAILED_GRACE))
            if pod.deleting:
                self._wake_when_due(pod)
        for rank in view.missing:
            body = render_pod(self.deployment, view.index, record.epoch, rank, self.settings)
            if record.revision == self.revision:
                self.actions.append(CreatePod(body))
        addresses = view.addresses()
        if addresses is None:
            return
        annotations = roster(*addresses)
        for pod in view.pods:
            if (pod.roster_ips, pod.roster_uids) != (annotations[names.POD_IPS], annotations[names.ROSTER_UIDS]):
                self.actions.append(WriteRoster(pod.name, pod.uid, annotations))
        if record.formed_time is None:
            where = ", ".join(f"{pod.name} {pod.ip}" for pod in sorted(view.pods, key=lambda pod: pod.rank))
            self.events.append(Event("GroupFormed", f"group {view.index}, epoch {record.epoch}: {where}"))
            formed = record.model_copy(update={"formed_time": self.now})
            self.views[view.index] = replaced(view, record=formed)

    def _wake_when_due(self, pod: Pod) -> None:
        if pod.deletion_due is not None and not _stuck(pod, self.snapshot):
            self.wakes.append((pod.deletion_due + STUCK - self.now).total_seconds() + 0.1)

    def departure(self) -> tuple[Action, ...]:
        """Drains every group."""
        for view in list(self.views.values()):
            self._remove_stale(view)
            self._drain(self._view(view.record.model_copy(update={"state": "Draining"})))
        return tuple(self.actions)

    def departed_groups(self) -> tuple[Group, ...]:
        return tuple(
            view.record.model_copy(update={"state": "Draining", "members": view.members()})
            for view in self.views.values()
        )

    # What is said about it

    def _downloading(self) -> tuple[str, ...]:
        found = tuple(
            member.pod for view in self.views.values() for member in view.members() if member.state == "Downloading"
        )
        if found:
            self.wakes.append(_PROGRESS_PERIOD)
        return found

    def _finished(self, view: GroupView) -> Group:
        """The record as it goes into the status."""
        state = view.state(self.now)
        record = view.record
        updates: dict[str, object] = {
            "state": state,
            "members": view.members(),
            "restart_times": recent(record.restart_times, self.spec.restart, self.now),
        }
        if state == "Ready":
            updates |= {"ready_time": record.ready_time or self.now, "not_before": None, "message": None}
        return record.model_copy(update=updates)

    def _status(self) -> ModelDeploymentStatus:
        groups = tuple(self._finished(view) for _, view in sorted(self.views.items()))
        alive = [group for group in groups if group.state != "Draining"]
        serving = [group for group in alive if group.state == "Ready"]
        updated = [group for group in alive if group.revision == self.revision]
        fetching = set(self._downloading())
        download = download_progress(
            {name: one for name, one in self.snapshot.progress.items() if name in fetching}
        ) or (self.status.download if fetching else None)
        progress_time = self._progress_time(len(serving), len(updated))
        facts = Facts(
            self.spec,
            alive,
            len(groups) - len(alive),
            self.revision,
            self.now,
            progress_time,
            download,
            self.snapshot.refused,
        )
        found = conditions(facts, self.status.conditions, self.deployment.generation)
        if any(one.type == "Progressing" and one.status == "True" for one in found):
            due = progress_time + timedelta(seconds=self.spec.rollout.progress_deadline_seconds + 1)
            self.wakes.append(max((due - self.now).total_seconds(), 1.0))
        return ModelDeploymentStatus(
            observed_generation=self.deployment.generation,
            replicas=len(alive),
            ready_replicas=len(serving),
            updated_replicas=len(updated),
            selector=",".join(f"{key}={value}" for key, value in names.leader_selector(self.deployment.name).items()),
            revision=self.revision,
            epoch=self.epoch,
            progress_time=progress_time,
            url=f"http://{names.leader_service(self.deployment.name)}.{self.deployment.namespace}.svc:9965/v1",
            download=download,
            groups=groups,
            conditions=found,
        )

    def _progress_time(self, serving: int, updated: int) -> datetime:
        before = self.status
        if (
            before.progress_time is None
            or before.observed_generation != self.deployment.generation
            or serving > before.ready_replicas
            or updated > before.updated_replicas
        ):
            return self.now
        return before.progress_time

    def _transitions(self, status: ModelDeploymentStatus) -> list[Event]:
        """Events for what has become so since the last status."""
        found = []
        before = {group.index: group for group in self.status.groups}
        for group in status.groups:
            old = before.get(group.index)
            was_ready = old is not None and old.epoch == group.epoch and old.state == "Ready"
            if group.state == "Ready" and not was_ready:
                took = (self.now - group.started_time).total_seconds() if group.started_time else 0.0
                found.append(Event("GroupReady", f"group {group.index} serves, {took:.0f} s after it was begun"))
        earlier = {condition.type: condition for condition in self.status.conditions}
        for condition in status.conditions:
            old_condition = earlier.get(condition.type)
            if old_condition is not None and old_condition.reason == condition.reason:
                continue
            if condition.reason in ("DownloadFailed", "ImagePullFailed", "InsufficientCapacity", "PodsRefused"):
                if condition.type == "Ready":
                    found.append(Event(condition.reason, condition.message, "Warning"))
            elif condition.reason == "ProgressDeadlineExceeded":
                found.append(Event(condition.reason, condition.message, "Warning"))
            elif condition.type == "Progressing" and condition.reason == "Complete":
                found.append(Event("RolloutComplete", condition.message))
        return found
