"""How often and how soon a group may be remade: back-off that doubles, and a budget per window."""

from datetime import datetime, timedelta

from oarlock_operator.api.spec import Restart
from oarlock_operator.api.status import Group


def recent(times: tuple[datetime, ...], policy: Restart, now: datetime) -> tuple[datetime, ...]:
    """Those restarts that still count."""
    return tuple(time for time in times if now - time < timedelta(seconds=policy.window_seconds))


def exhausted(group: Group, policy: Restart, now: datetime) -> bool:
    """Whether the group has used up its restarts and rests."""
    return len(recent(group.restart_times, policy, now)) > policy.budget


def not_before(times: tuple[datetime, ...], policy: Restart, now: datetime) -> datetime:
    """When a group may be formed again whose restarts, this one included, happened at `times` (all within the window).

    At once for the first; after a pause that doubles for each further one; when the budget is used up, when the oldest
    leaves the window.
    """
    if len(times) > policy.budget:
        return times[0] + timedelta(seconds=policy.window_seconds)
    if len(times) <= 1:
        return now
    pause = min(policy.backoff_seconds * 2 ** (len(times) - 2), policy.max_backoff_seconds)
    return now + timedelta(seconds=pause)


def restarted(group: Group, epoch: int, revision: str, reason: str, policy: Restart, now: datetime) -> Group:
    """The group's record after its epoch ended because of a loss."""
    times = (*recent(group.restart_times, policy, now), now)[-policy.budget - 1 :]
    return Group(
        index=group.index,
        epoch=epoch,
        revision=revision,
        state="Waiting",
        message=reason,
        restarts=group.restarts + 1,
        restart_times=times,
        last_restart_reason=reason,
        not_before=not_before(times, policy, now),
        started_time=now,
    )
