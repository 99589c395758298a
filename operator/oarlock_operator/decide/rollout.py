"""Which groups there should be: how many, of which revision, and which leave. Scaling and rolling updates alike.

Groups that leave still hold their nodes and GPUs, so they count against what may exist at once, unless they are stuck.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from oarlock_operator.api.spec import Rollout


@dataclass(frozen=True)
class GroupFacts:
    """What the choice depends on. `holding`: a leaving group whose pods haven't ended yet."""

    index: int
    updated: bool
    ready: bool
    leaving: bool = False
    holding: bool = False


@dataclass(frozen=True)
class Choice:
    """`create`: numbers of new groups. `drain`: groups that leave. `replace`: old groups that don't serve anyway and
    are remade from the new spec in their place."""

    create: tuple[int, ...] = ()
    drain: tuple[int, ...] = ()
    replace: tuple[int, ...] = ()


def choose(groups: Sequence[GroupFacts], replicas: int, rollout: Rollout) -> Choice:
    """The next step towards `replicas` groups of the present revision. Making it again changes nothing."""
    alive = [group for group in groups if not group.leaving]
    taken = {group.index for group in groups}
    old = [] if rollout.paused else [group for group in alive if not group.updated]
    most = replicas + (rollout.max_surge if old else 0)
    drain = [group.index for group in _least_useful(alive)[: max(len(alive) - most, 0)]]
    staying = [group for group in alive if group.index not in drain]
    replace = [group.index for group in staying if group in old and not group.ready]

    # Serving old groups leave while enough others serve.
    spare = sum(group.ready for group in staying) - max(replicas - rollout.max_unavailable, 0)
    for group in sorted(staying, key=lambda group: -group.index):
        if group in old and group.ready and spare > 0:
            drain.append(group.index)
            spare -= 1

    kept = [group for group in alive if group.index not in drain]
    lacking = replicas - sum(group not in old for group in kept) - len(replace)
    held = len(alive) + sum(group.leaving and group.holding for group in groups)
    room = replicas + rollout.max_surge - held
    create = _numbers(min(lacking, room), taken)
    return Choice(create, tuple(sorted(drain)), tuple(replace))


def _least_useful(groups: list[GroupFacts]) -> list[GroupFacts]:
    """Those first that are missed least: not serving, then of an old revision, then of a high number."""
    return sorted(groups, key=lambda group: (group.ready, group.updated, -group.index))


def _numbers(count: int, taken: set[int]) -> tuple[int, ...]:
    """The lowest free numbers; none for a count below one."""
    found: list[int] = []
    number = 0
    while len(found) < count:
        if number not in taken:
            found.append(number)
        number += 1
    return tuple(found)
