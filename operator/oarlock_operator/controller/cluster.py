"""What the reconcile loop needs of the world: a real API server (`kubernetes`), or this machine (the local runner)."""

from typing import Protocol

from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.api.status import ModelDeploymentStatus
from oarlock_operator.decide.actions import Action, Event
from oarlock_operator.decide.snapshot import Snapshot

Key = tuple[str, str]  # namespace and name of a ModelDeployment


class Conflict(Exception):
    """Somebody else changed the object since it was observed: look again, then decide again."""


class Cluster(Protocol):
    """Where decisions are made about, and carried out."""

    def snapshot(self, key: Key) -> Snapshot | None:
        """What is observed of a deployment now; None when it is gone. Raises SpecError when it can't be understood."""

    async def write_status(self, deployment: ModelDeployment, status: ModelDeploymentStatus) -> None:
        """Writes the status unless the object was changed since it was observed. Raises Conflict then."""

    async def carry_out(self, deployment: ModelDeployment, action: Action) -> None:
        """Carries out one action."""

    def report(self, deployment: ModelDeployment, event: Event) -> None:
        """Makes an event known, without waiting for that."""

    async def sample_progress(self, key: Key, pods: tuple[str, ...]) -> None:
        """Looks how far the downloads of these pods are; the next snapshot has it."""

    async def refresh(self, key: Key) -> None:
        """Observes the deployment anew, after a conflict."""

    async def report_unreadable(self, key: Key, message: str) -> None:
        """Makes known that a deployment's spec can't be understood."""
