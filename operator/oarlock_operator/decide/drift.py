"""Whether an owned object is as it was made. What the API server filled in is no drift; what people changed is."""

from collections.abc import Mapping
from typing import Any

from oarlock_operator.api.quantity import same
from oarlock_operator.decide.actions import Action, Apply, Delete, Prune
from oarlock_operator.decide.snapshot import Object

# Maps whose every key is ours: one more selector label would take all pods out of a Service.
_OURS_ALONE = (("spec", "selector"), ("spec", "selector", "matchLabels"), ("spec", "podSelector", "matchLabels"))
_IMMUTABLE_KINDS = ("PersistentVolumeClaim",)


def repair(wanted: list[Any], observed: Mapping[tuple[str, str], Object]) -> tuple[Action, ...]:
    """What makes the standing objects right again: nothing, when they are."""
    actions: list[Action] = []
    names = set()
    for body in wanted:
        key = (body["kind"], body["metadata"]["name"])
        names.add(key)
        found = observed.get(key)
        if found is None or (key[0] not in _IMMUTABLE_KINDS and not covers(found, body)):
            actions.append(Apply(body))
        if found is not None and (extra := _extra(found, body)):
            actions.append(Prune(*key, extra))
    actions += [
        Delete(kind, name, body["metadata"].get("uid", ""))
        for (kind, name), body in sorted(observed.items())
        if (kind, name) not in names and "deletionTimestamp" not in body["metadata"]
    ]
    return tuple(actions)


def covers(observed: Any, wanted: Any) -> bool:
    """Whether all of `wanted` is in `observed`; more may be there."""
    if isinstance(wanted, Mapping):
        return isinstance(observed, Mapping) and all(
            key in observed and covers(observed[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(observed, list)
            and len(observed) == len(wanted)
            and all(covers(one, other) for one, other in zip(observed, wanted, strict=True))
        )
    if observed == wanted:
        return True
    return isinstance(observed, str | int) and isinstance(wanted, str | int) and same(observed, wanted)


def _extra(observed: Object, wanted: Object) -> dict[str, Any]:
    """A merge patch that removes foreign keys from the maps that are ours alone; empty when there are none."""
    patch: dict[str, Any] = {}
    for path in _OURS_ALONE:
        ours, theirs = _at(wanted, path), _at(observed, path)
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            continue
        foreign = sorted(set(theirs) - set(ours))
        if foreign:
            place = patch
            for part in path:
                place = place.setdefault(part, {})
            place.update(dict.fromkeys(foreign))
    return patch


def _at(body: Object, path: tuple[str, ...]) -> Any:
    found: Any = body
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
