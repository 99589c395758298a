"""The conditions: whether it is up, and if not, why. Computed from the groups alone, never from earlier conditions.

Ready's reason names what stands in the way most: no capacity, image, download, forming, loading, restarts, update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from oarlock_operator.api.spec import ModelDeploymentSpec
from oarlock_operator.api.status import Condition, ConditionStatus, ConditionType, DownloadProgress, Group, Member
from oarlock_operator.decide.members import start_trouble
from oarlock_operator.decide.restarts import exhausted
from oarlock_operator.render.volumes import downloads

_WORDS = {
    "Pending": ("Scheduling", "is waiting for nodes"),
    "Pulling": ("PullingImage", "is getting its image and volumes"),
    "Downloading": ("Downloading", "is fetching the model"),
    "Forming": ("Forming", "is telling its members of each other"),
    "Loading": ("Loading", "is loading the model"),
    "Waiting": ("RestartBackOff", "waits before it is formed again"),
}


@dataclass(frozen=True)
class Verdict:
    """A condition without its times."""

    type: ConditionType
    status: ConditionStatus
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Facts:
    """What all conditions are made from. `groups`: those that don't leave."""

    spec: ModelDeploymentSpec
    groups: Sequence[Group]
    leaving: int
    revision: str
    now: datetime
    progress_time: datetime
    download: DownloadProgress | None
    refused: str = ""

    @property
    def serving(self) -> list[Group]:
        return [group for group in self.groups if group.state == "Ready"]

    @property
    def updated(self) -> list[Group]:
        return [group for group in self.groups if group.revision == self.revision]

    @property
    def members(self) -> list[Member]:
        return [member for group in self.groups for member in group.members]

    @property
    def complete(self) -> bool:
        """Nothing is left to do: all groups are of the present revision and serve."""
        return len(self.groups) == len(self.updated) == len(self.serving) == self.spec.replicas and not self.leaving

    @property
    def settled(self) -> bool:
        return self.complete or (self.spec.rollout.paused and len(self.serving) == self.spec.replicas)


def conditions(facts: Facts, before: Sequence[Condition], generation: int) -> tuple[Condition, ...]:
    """All conditions; a transition time is kept while the status is what it was."""
    verdicts = (_ready(facts), _available(facts), _progressing(facts), _model_cached(facts), _degraded(facts))
    return stamped(verdicts, before, generation, facts.now)


def stamped(
    verdicts: Sequence[Verdict], before: Sequence[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Conditions with their times: since when each has had its status."""
    earlier = {condition.type: condition for condition in before}
    found = []
    for verdict in verdicts:
        old = earlier.get(verdict.type)
        since = old.last_transition_time if old is not None and old.status == verdict.status else now
        found.append(
            Condition(
                type=verdict.type,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message[:4096],
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return tuple(found)


def beside(found: Sequence[Condition], before: Sequence[Condition]) -> tuple[Condition, ...]:
    """New conditions, and those of other types as they were."""
    types = {condition.type for condition in found}
    return (*found, *(old for old in before if old.type not in types))


def invalid(message: str) -> tuple[Verdict, ...]:
    """The verdicts on a spec that can't be carried out."""
    return (
        Verdict("Ready", "False", "InvalidSpec", message),
        Verdict("Progressing", "False", "InvalidSpec", message),
        Verdict("Degraded", "True", "InvalidSpec", message),
    )


def deleting(left: int) -> tuple[Verdict, ...]:
    """The verdicts while the deployment is taken down."""
    message = f"{left} pods finish their requests and leave"
    return (Verdict("Ready", "False", "Deleting", message), Verdict("Progressing", "True", "Deleting", message))


def _ready(facts: Facts) -> Verdict:
    wanted, serving = facts.spec.replicas, len(facts.serving)
    if wanted == 0:
        return Verdict("Ready", "True", "ScaledToZero", "no groups are asked for")
    count = f"{serving} of {wanted} groups serve"
    if serving >= wanted:
        if facts.complete:
            return Verdict("Ready", "True", "Serving", count)
        return Verdict("Ready", "True", "Updating", f"{count}, {_updated(facts)}")
    reason, message = _obstacle(facts)
    return Verdict("Ready", "False", reason, f"{count}; {message}")


def _updated(facts: Facts) -> str:
    return f"{len(facts.updated)} of {facts.spec.replicas} are made from the present spec"


def _obstacle(facts: Facts) -> tuple[str, str]:
    """What stands in the way of the group that is least far."""
    behind = [group for group in facts.groups if group.state != "Ready"]
    tired = [group for group in behind if exhausted(group, facts.spec.restart, facts.now)]
    if tired:
        return "RestartBudgetExhausted", _rests(tired[0])
    if facts.refused:
        return "PodsRefused", facts.refused
    for group in behind:
        for member in group.members:
            if member.state == "Pending" and member.message:
                return "InsufficientCapacity", f"{member.pod} fits on no node: {member.message}"
            if trouble := start_trouble(member):
                return trouble, f"{member.pod}: {member.message}"
            if member.state == "DownloadFailed":
                return "DownloadFailed", f"{member.pod}: {member.message}"
    for state, (reason, words) in _WORDS.items():
        for group in behind:
            if group.state != state:
                continue
            if state == "Downloading" and facts.download is not None:
                return reason, f"group {group.index} {words}: {facts.download.summary}"
            why = f" after: {group.message}" if group.message else ""
            return reason, f"group {group.index} {words}{why}"
    if facts.leaving:
        return "Updating", f"{facts.leaving} groups leave, {_updated(facts)}"
    return "Scheduling", "groups are being made"


def _rests(group: Group) -> str:
    until = f" until {group.not_before:%H:%M:%S} UTC" if group.not_before else ""
    return f"group {group.index} was remade {group.restarts} times and rests{until}; last: {group.message}"


def _available(facts: Facts) -> Verdict:
    if facts.serving:
        return Verdict("Available", "True", "GroupServing", f"{len(facts.serving)} groups answer requests")
    return Verdict("Available", "False", "NoGroupServing", "no group answers requests")


def _progressing(facts: Facts) -> Verdict:
    if facts.settled:
        paused = facts.spec.rollout.paused and not facts.complete
        return Verdict("Progressing", "False", "Paused" if paused else "Complete", _updated(facts))
    quiet = facts.now - facts.progress_time
    deadline = timedelta(seconds=facts.spec.rollout.progress_deadline_seconds)
    fetching = any(group.state == "Downloading" for group in facts.groups)
    if quiet > deadline and not fetching:
        _, message = _obstacle(facts)
        since = f"no group came forward for {int(quiet.total_seconds())} s"
        return Verdict("Progressing", "False", "ProgressDeadlineExceeded", f"{since}: {message}")
    if len(facts.updated) < len(facts.groups) or facts.leaving:
        return Verdict("Progressing", "True", "RollingOut", _updated(facts))
    return Verdict("Progressing", "True", "Starting", f"{len(facts.serving)} of {facts.spec.replicas} groups serve")


def _model_cached(facts: Facts) -> Verdict:
    source = facts.spec.model.source
    if not downloads(source):
        return Verdict("ModelCached", "True", "Provided", f"the model is at {source} in the pods")
    for member in facts.members:
        if member.state == "DownloadFailed":
            said = member.message or ""  # its address first, mostly
            return Verdict("ModelCached", "False", "DownloadFailed", said if source in said else f"{source}: {said}")
    if any(member.state == "Downloading" for member in facts.members):
        summary = facts.download.summary if facts.download is not None else "begun"
        return Verdict("ModelCached", "False", "Downloading", f"{source}: {summary}")
    through = [
        member
        for member in facts.members
        if member.state not in ("Pending", "Pulling", "Downloading", "DownloadFailed")
    ]
    if through and len(through) == len(facts.members):
        return Verdict("ModelCached", "True", "Downloaded", source)
    return Verdict("ModelCached", "Unknown", "Waiting", f"no pod has begun to fetch {source}")


def _degraded(facts: Facts) -> Verdict:
    for group in facts.groups:
        if group.state != "Ready" and exhausted(group, facts.spec.restart, facts.now):
            return Verdict("Degraded", "True", "RestartBudgetExhausted", _rests(group))
    if facts.refused:
        return Verdict("Degraded", "True", "PodsRefused", facts.refused)
    for group in facts.groups:
        if group.state == "Waiting":
            return Verdict("Degraded", "True", "RestartBackOff", f"group {group.index}: {group.message}")
    for member in facts.members:
        if trouble := start_trouble(member):
            return Verdict("Degraded", "True", trouble, f"{member.pod}: {member.message}")
        if member.state == "DownloadFailed":
            return Verdict("Degraded", "True", "DownloadFailed", f"{member.pod}: {member.message}")
    return Verdict("Degraded", "False", "AsExpected", "")
