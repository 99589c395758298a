"""One group as observed: its record in the status beside its pods, whether it is whole, and what it is doing."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from oarlock_operator.api.status import Group, GroupState, Member, MemberState
from oarlock_operator.decide.members import member, server_trouble
from oarlock_operator.decide.snapshot import Pod

# A pod that should have ended so long ago sits on a node that doesn't answer; nobody waits for it any more.
STUCK = timedelta(seconds=30)

# The least advanced member tells what the group is doing.
_STATES: tuple[tuple[MemberState, GroupState], ...] = (
    ("Failed", "Pending"),
    ("Terminating", "Pending"),
    ("Pending", "Pending"),
    ("Pulling", "Pulling"),
    ("DownloadFailed", "Downloading"),
    ("Downloading", "Downloading"),
    ("WaitingForPeers", "Forming"),
    ("Loading", "Loading"),
    ("NotReady", "Loading"),
    ("Ready", "Ready"),
)


@dataclass(frozen=True)
class GroupView:
    """`pods`: those of the present epoch by rank. `stale`: what is left of earlier ones."""

    record: Group
    nodes: int
    pods: tuple[Pod, ...] = ()
    stale: tuple[Pod, ...] = ()

    @property
    def index(self) -> int:
        return self.record.index

    @property
    def draining(self) -> bool:
        return self.record.state == "Draining"

    @property
    def leader(self) -> Pod | None:
        return next((pod for pod in self.pods if pod.rank == 0), None)

    @property
    def formed(self) -> bool:
        """Whether the roster of this epoch was begun to be written."""
        return self.record.formed_time is not None or any(pod.formed for pod in self.pods)

    @property
    def ready(self) -> bool:
        alive = [pod for pod in self.pods if pod.ready and not pod.deleting]
        return not self.draining and self.formed and len(alive) == self.size

    @property
    def size(self) -> int:
        """Members of this epoch; a group made before `nodes` changed keeps its own number."""
        roster = next((pod.roster_uids for pod in self.pods if pod.formed), "")
        return roster.count(",") + 1 if roster else self.nodes

    @property
    def missing(self) -> list[int]:
        """Ranks without a pod."""
        return sorted(set(range(self.size)) - {pod.rank for pod in self.pods})

    def addresses(self) -> tuple[list[str], list[str]] | None:
        """Addresses and uids by rank, once every member has an address and has fetched the model."""
        if self.missing or any(not pod.ip or not pod.fetched or pod.deleting or pod.ended for pod in self.pods):
            return None
        members = sorted(self.pods, key=lambda pod: pod.rank)
        return [pod.ip for pod in members], [pod.uid for pod in members]

    def loss(self, now: datetime) -> str | None:
        """Why this epoch is over, or None while it is whole.

        Before the members know each other a lost one is simply made again; how long they pull and fetch doesn't
        matter. Afterwards any change of a member ends the epoch.
        """
        for pod in self.pods:
            if pod.deletion_due is not None and now > pod.deletion_due + STUCK:
                return f"{pod.name} is stuck on node {pod.node or 'none'}"
        if not self.formed:
            return None
        if self.missing:
            return f"the pod of rank {self.missing[0]} is gone"
        for pod in self.pods:
            if reason := _end(pod):
                return reason
        for told in self.pods:
            if told.formed and (reason := self._change(told)):
                return reason
        return None

    def _change(self, told: Pod) -> str | None:
        """What is no longer as one member was told."""
        ips, uids = told.roster_ips.split(","), told.roster_uids.split(",")
        for pod in self.pods:
            if uids[pod.rank : pod.rank + 1] != [pod.uid]:
                return f"{pod.name} was replaced by another pod of that name"
            if ips[pod.rank : pod.rank + 1] != [pod.ip]:
                return f"the address of {pod.name} changed to {pod.ip or 'none'}"
        return None

    def members(self) -> tuple[Member, ...]:
        return tuple(member(pod) for pod in sorted(self.pods, key=lambda pod: pod.rank))

    def state(self, now: datetime) -> GroupState:
        """What the group is doing, by its least advanced member."""
        if self.draining:
            return "Draining"
        if self.ready:
            return "Ready"
        if not self.pods and self.record.not_before is not None and now < self.record.not_before:
            return "Waiting"
        states = {found.state for found in self.members()}
        if self.missing:
            return "Pending"
        return next((group for one, group in _STATES if one in states and group != "Ready"), "Loading")


def _end(pod: Pod) -> str | None:
    if pod.deleting:
        return f"{pod.name} was deleted"
    if pod.ended:
        return f"{pod.name} ended: {pod.reason or pod.server.exit_message or pod.phase}"
    if pod.server.restarts or pod.server.exit_code is not None:
        return f"{pod.name}: {server_trouble(pod.server)}"
    return None
