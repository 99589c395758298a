"""The decision on one deployment: `decide(snapshot, settings)`.

1. Each group's record in the status is put beside its pods (`round`). 2. A group that lost a member gets a new epoch
(`restarts`). 3. Scaling and updates choose groups that come, leave or are replaced (`rollout`). 4. For every group the
pods are brought in line with its record: created, told the roster, drained, removed (`pods`). 5. The status says all of
it (`report`).
"""

from oarlock_operator.api import names
from oarlock_operator.decide.actions import Action, Apply, Decision, Delete, Event, Prune, SetFinalizer
from oarlock_operator.decide.conditions import beside, invalid, stamped
from oarlock_operator.decide.departure import depart
from oarlock_operator.decide.drift import repair
from oarlock_operator.decide.pods import drain, form, remove_stale
from oarlock_operator.decide.report import downloading, status_of, transitions
from oarlock_operator.decide.rollout import GroupFacts, choose
from oarlock_operator.decide.round import Round
from oarlock_operator.decide.snapshot import Snapshot
from oarlock_operator.render.objects import standing_objects
from oarlock_operator.render.settings import RenderSettings


def decide(snapshot: Snapshot, settings: RenderSettings) -> Decision:
    """What is to be done now. The same snapshot always gives the same decision."""
    deployment = snapshot.deployment
    if snapshot.deletion_time is not None:
        return depart(Round(snapshot, settings), snapshot.deletion_time)
    if deployment.spec.model.host_path is not None and not settings.allow_host_path:
        return _refuse(snapshot, "spec.model.hostPath is refused: the operator was started without --allow-host-path")
    this = Round(snapshot, settings)
    if names.FINALIZER not in deployment.finalizers:
        this.actions.append(SetFinalizer(True))
    _end_lost_epochs(this)
    _choose_groups(this)
    _repair_standing_objects(this)
    for view in list(this.views.values()):
        remove_stale(this, view)
        if view.draining:
            drain(this, view)
        else:
            form(this, view)
    fetching = downloading(this)
    status = status_of(this, fetching)
    return Decision(
        status,
        tuple(this.actions),
        (*this.events, *transitions(this, status)),
        wake_after=min(this.wakes) if this.wakes else None,
        downloading=fetching,
    )


def _refuse(snapshot: Snapshot, message: str) -> Decision:
    """Leaves everything as it is and says why."""
    deployment = snapshot.deployment
    found = stamped(invalid(message), deployment.status.conditions, deployment.generation, snapshot.now)
    told = beside(found, deployment.status.conditions)
    status = deployment.status.model_copy(update={"conditions": told, "observed_generation": deployment.generation})
    known = any(old.reason == "InvalidSpec" and old.message == message for old in deployment.status.conditions)
    return Decision(status, events=() if known else (Event("InvalidSpec", message, "Warning"),))


def _repair_standing_objects(this: Round) -> None:
    repairs = repair(standing_objects(this.deployment, this.settings, sorted(this.views)), this.snapshot.objects)
    this.actions += repairs
    known = this.status.observed_generation == this.deployment.generation
    drift = [action for action in repairs if not _comes_or_goes_with_a_group(this, action)]
    if drift and known and not this.snapshot.unfinished:
        wrong = ", ".join(sorted({_object_of(action) for action in drift}))
        this.events.append(Event("DriftRepaired", f"not as it should be: {wrong}", "Warning"))


def _comes_or_goes_with_a_group(this: Round, action: Action) -> bool:
    """Whether it is about an object of a group that is new, or no more."""
    match action:
        case Apply(body):
            group = body["metadata"]["labels"].get(names.GROUP_INDEX)
            return group is not None and int(group) not in {record.index for record in this.status.groups}
        case Delete(kind, name, _):
            return names.GROUP_INDEX in this.snapshot.objects[kind, name]["metadata"].get("labels", {})
    return False


def _object_of(action: Action) -> str:
    """What a repair is about."""
    match action:
        case Apply(body):
            return f"{body['kind']} {body['metadata']['name']}"
        case Prune(kind, name, _) | Delete(kind, name, _):
            return f"{kind} {name}"
    return type(action).__name__


def _end_lost_epochs(this: Round) -> None:
    for view in list(this.views.values()):
        if view.draining:
            continue
        if reason := view.loss(this.now):
            this.restart(view, reason)
        elif view.missing and not view.formed and view.record.revision != this.revision:
            # The spec it was made from is no longer known.
            this.begin(view.index)


def _choose_groups(this: Round) -> None:
    facts = [
        GroupFacts(
            index=view.index,
            updated=view.record.revision == this.revision,
            ready=view.ready,
            leaving=view.draining,
            holding=any(not this.stuck(pod) for pod in view.pods),
        )
        for view in this.views.values()
    ]
    choice = choose(facts, this.spec.replicas, this.spec.rollout)
    for index in choice.drain:
        record = this.views[index].record.model_copy(update={"state": "Draining", "not_before": None})
        this.views[index] = this.view(record)
        this.events.append(Event("GroupDraining", f"group {index} finishes its requests and leaves"))
    for index in choice.replace:
        this.events.append(Event("GroupReplaced", f"group {index} does not serve and is made from the new spec"))
        # A budget used up by the old spec must not hold up the new one.
        this.begin(index)
    for index in choice.create:
        this.begin(index)
