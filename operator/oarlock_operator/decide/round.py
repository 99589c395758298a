"""The working state of one decision: the groups as they are seen, and what is to be done and said so far.

The functions of `rollout`, `pods` and `report` fill it. Everything it reads is in the snapshot.
"""

from oarlock_operator.api.status import Group
from oarlock_operator.decide.actions import Action, Event
from oarlock_operator.decide.groups import STUCK, GroupView
from oarlock_operator.decide.restarts import exhausted, restarted
from oarlock_operator.decide.snapshot import Pod, Snapshot
from oarlock_operator.render.common import revision as revision_of
from oarlock_operator.render.settings import RenderSettings


class Round:
    """`views`: the groups by number. `wakes`: seconds after which time alone may change the decision."""

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
        self.views = {record.index: self.view(record) for record in self._records()}

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

    def view(self, record: Group) -> GroupView:
        """A group's record beside its pods."""
        mine = [pod for pod in self.snapshot.pods if pod.group == record.index]
        return GroupView(
            record,
            self.spec.parallelism.nodes,
            tuple(pod for pod in mine if pod.epoch == record.epoch),
            tuple(pod for pod in mine if pod.epoch != record.epoch),
        )

    def stuck(self, pod: Pod) -> bool:
        """Whether nobody waits for its end any more."""
        return pod.deletion_due is not None and self.now > pod.deletion_due + STUCK

    def wake_when_due(self, pod: Pod) -> None:
        """Looks again when a pod that leaves counts as stuck."""
        if pod.deletion_due is not None and not self.stuck(pod):
            self.wakes.append((pod.deletion_due + STUCK - self.now).total_seconds() + 0.1)

    def restart(self, view: GroupView, reason: str) -> None:
        """Ends a group's epoch because of a loss; the next begins as `restarts` allows."""
        self.epoch += 1
        record = restarted(view.record, self.epoch, self.revision, reason, self.spec.restart, self.now)
        if exhausted(record, self.spec.restart, self.now):
            count = len(record.restart_times)
            message = f"group {view.index} lost its members {count} times within the window and rests: {reason}"
            self.events.append(Event("RestartBudgetExhausted", message, "Warning"))
        else:
            message = f"group {view.index} is formed again as epoch {self.epoch}: {reason}"
            self.events.append(Event("GroupRestarting", message, "Warning"))
        self.views[view.index] = self.view(record)

    def begin(self, index: int) -> None:
        """A new group, or a new epoch of one that nothing is known against: its restarts count no more."""
        self.epoch += 1
        record = Group(index=index, epoch=self.epoch, revision=self.revision, state="Pending", started_time=self.now)
        self.views[index] = self.view(record)
        self.events.append(Event("GroupCreated", f"group {index} is begun as epoch {self.epoch}"))
