"""What is done to the pods of one group: stale ones end, missing ones are made, the roster is written, or all drain."""

from dataclasses import replace

from oarlock_operator.api import names
from oarlock_operator.decide.actions import CreatePod, DeletePod, Event, WriteRoster
from oarlock_operator.decide.groups import GroupView
from oarlock_operator.decide.round import Round
from oarlock_operator.render.pod import pod as render_pod
from oarlock_operator.render.pod import roster

FAILED_GRACE = 5  # seconds for pods that serve nobody any more


def remove_stale(this: Round, view: GroupView) -> None:
    """Ends what is left of earlier epochs."""
    this.actions += [DeletePod(pod.name, pod.uid, FAILED_GRACE) for pod in view.stale if not pod.deleting]


def drain(this: Round, view: GroupView) -> None:
    """The leader first: members that serve with it must not go before its requests are finished."""
    leader = view.leader
    if leader is not None and not leader.ended and not this.stuck(leader):
        if not leader.deleting:
            this.actions.append(DeletePod(leader.name, leader.uid, None if leader.ready else FAILED_GRACE))
        this.wake_when_due(leader)
        return
    left = False
    for pod in view.pods:
        if not pod.deleting:
            this.actions.append(DeletePod(pod.name, pod.uid, FAILED_GRACE))
        else:
            this.wake_when_due(pod)
        left = left or not this.stuck(pod)
    if not left:
        del this.views[view.index]
        this.events.append(Event("GroupRemoved", f"group {view.index} is gone"))


def form(this: Round, view: GroupView) -> None:
    """Brings the pods in line with the record: makes what is missing, and writes the roster once all are there."""
    record = view.record
    if record.not_before is not None and this.now < record.not_before:
        this.wakes.append((record.not_before - this.now).total_seconds())
        return
    for pod in view.pods:
        if pod.ended and not pod.deleting and not view.formed:
            this.actions.append(DeletePod(pod.name, pod.uid, FAILED_GRACE))
        if pod.deleting:
            this.wake_when_due(pod)
    if record.revision == this.revision:
        this.actions += [
            CreatePod(render_pod(this.deployment, view.index, record.epoch, rank, this.settings))
            for rank in view.missing
        ]
    _introduce(this, view)


def _introduce(this: Round, view: GroupView) -> None:
    """Tells members of each other, once every one has an address and its model."""
    addresses = view.addresses()
    if addresses is None:
        return
    annotations = roster(*addresses)
    for pod in view.pods:
        if (pod.roster_ips, pod.roster_uids) != (annotations[names.POD_IPS], annotations[names.ROSTER_UIDS]):
            this.actions.append(WriteRoster(pod.name, pod.uid, annotations))
    record = view.record
    if record.formed_time is None:
        where = ", ".join(f"{pod.name} {pod.ip}" for pod in sorted(view.pods, key=lambda pod: pod.rank))
        this.events.append(Event("GroupFormed", f"group {view.index}, epoch {record.epoch}: {where}"))
        this.views[view.index] = replace(view, record=record.model_copy(update={"formed_time": this.now}))
