"""What was last seen of every object of ours: fed by watch events, by answers to our own writes, and by listings.

An answer to a write is newer than the events that are still on their way, so decisions see what was done. Versions of
one object are ordered by resourceVersion; what was seen deleted doesn't come back.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.controller.cluster import Key

Body = Mapping[str, Any]
_TOMBS = 20000


class Store:
    """Objects by deployment."""

    def __init__(self) -> None:
        self.deployments: dict[Key, Body] = {}
        self._owned: dict[Key, dict[tuple[str, str], Body]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def owned(self, key: Key) -> Mapping[tuple[str, str], Body]:
        """The objects of a deployment by (kind, name), pods among them."""
        return self._owned.get(key, {})

    def put(self, body: Body) -> Key | None:
        """Takes in a version of an object. Returns the deployment it belongs to if anything that is read changed."""
        key = deployment_of(body)
        if key is None or body["metadata"].get("uid", "") in self._gone:
            return None
        if body["kind"] == names.KIND:
            known = self.deployments.get(key)
            if not _newer(body, known):
                return None
            self.deployments[key] = kept = slim(body)
            return key if _differs(kept, known) else None
        mine = self._owned.setdefault(key, {})
        place = (body["kind"], body["metadata"]["name"])
        known = mine.get(place)
        if not _newer(body, known):
            return None
        mine[place] = kept = slim(body)
        return key if _differs(kept, known) else None

    def drop(self, body: Body) -> Key | None:
        """Takes in that an object is gone. Returns the deployment it belonged to."""
        key = deployment_of(body)
        if key is None:
            return None
        uid = body["metadata"].get("uid", "")
        self._gone[uid] = None
        while len(self._gone) > _TOMBS:
            self._gone.popitem(last=False)
        if body["kind"] == names.KIND:
            if self.deployments.get(key, {}).get("metadata", {}).get("uid") == uid:
                del self.deployments[key]
            return key
        place = (body["kind"], body["metadata"]["name"])
        mine = self._owned.get(key, {})
        if mine.get(place, {}).get("metadata", {}).get("uid") == uid:
            del mine[place]
            if not mine:
                del self._owned[key]
        return key

    def all_of(self, kind: str) -> list[Body]:
        """Every object of a kind, for comparing with a listing."""
        if kind == names.KIND:
            return list(self.deployments.values())
        return [body for mine in self._owned.values() for (found, _), body in mine.items() if found == kind]


def deployment_of(body: Body) -> Key | None:
    """The deployment an object belongs to, by its label; a ModelDeployment belongs to itself."""
    metadata = body["metadata"]
    if body.get("kind") == names.KIND:
        return metadata["namespace"], metadata["name"]
    name = (metadata.get("labels") or {}).get(names.DEPLOYMENT)
    return (metadata["namespace"], name) if name else None


def slim(body: Body) -> Body:
    """Without what nobody reads and what takes most of the room: managedFields, a pod's volumes and environment, what
    others write into the status of our standing objects."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    if body["kind"] == names.KIND:
        return {**body, "metadata": metadata}
    if body["kind"] != "Pod":
        return {**{k: v for k, v in body.items() if k != "status"}, "metadata": metadata}
    spec, status = body.get("spec") or {}, body.get("status") or {}
    kept = {
        "nodeName": spec.get("nodeName", ""),
        "initContainers": [{"name": container["name"]} for container in spec.get("initContainers") or ()],
    }
    wanted = ("phase", "podIP", "conditions", "containerStatuses", "initContainerStatuses", "reason", "message")
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": kept,
        "status": {name: status[name] for name in wanted if name in status},
    }


def _newer(body: Body, known: Body | None) -> bool:
    if known is None or known["metadata"].get("uid") != body["metadata"].get("uid"):
        return True
    return version(body) > version(known)


def _differs(body: Body, known: Body | None) -> bool:
    """Whether two versions, as they are kept, differ in more than their number."""
    if known is None:
        return True
    return {**body, "metadata": _unnumbered(body)} != {**known, "metadata": _unnumbered(known)}


def _unnumbered(body: Body) -> Body:
    return {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}


def version(body: Body) -> int:
    """The resourceVersion as the number it is."""
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0
