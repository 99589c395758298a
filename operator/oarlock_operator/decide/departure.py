"""A deployment that is deleted: its groups drain; the finalizer goes with the last pod, or when time is up."""

from datetime import datetime, timedelta

from oarlock_operator.api import names
from oarlock_operator.decide.actions import Decision, SetFinalizer
from oarlock_operator.decide.conditions import beside, deleting, stamped
from oarlock_operator.decide.pods import drain, remove_stale
from oarlock_operator.decide.round import Round

_SLACK = timedelta(seconds=60)


def depart(this: Round, since: datetime) -> Decision:
    """The next step of the departure that was asked for at `since`."""
    deployment = this.deployment
    if names.FINALIZER not in deployment.finalizers:
        return Decision(deployment.status)
    records = tuple(
        view.record.model_copy(update={"state": "Draining", "members": view.members()})
        for view in list(this.views.values())
    )
    for record in records:
        remove_stale(this, this.views[record.index])
        drain(this, this.view(record))
    left = [pod for pod in this.snapshot.pods if not this.stuck(pod)]
    if not left or this.now > since + timedelta(seconds=this.spec.grace_seconds) + _SLACK:
        this.actions.append(SetFinalizer(False))
    found = stamped(deleting(len(left)), this.status.conditions, deployment.generation, this.now)
    groups = tuple(record for record in records if record.index in this.views)
    told = beside(found, this.status.conditions)
    status = this.status.model_copy(update={"conditions": told, "groups": groups, "ready_replicas": 0})
    return Decision(status, tuple(this.actions), wake_after=5.0)
