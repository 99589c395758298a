"""Events from the API server into the store, by kopf; and a listing now and then that shows what events have missed.

kopf keeps the watch streams alive; its handlers here only take in what they are given and wake the reconcile loop.
"""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Mapping
from typing import Any, cast

import kopf

from oarlock_operator.api import names
from oarlock_operator.controller.client import Api, ApiError
from oarlock_operator.controller.reconcile import Reconciler
from oarlock_operator.controller.store import Body, Store

LISTING_SECONDS = 120.0
_SILENCE_SECONDS = 30.0
_SETTLING_SECONDS = 1.0
OWNED = {
    "Pod": ("", "v1", "pods"),
    "Service": ("", "v1", "services"),
    "PersistentVolumeClaim": ("", "v1", "persistentvolumeclaims"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
}

log = logging.getLogger(__name__)


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf's record of what its handlers have seen, which ours don't use: it would copy every object several times."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class Watcher:
    """Feeds a store. `namespaces` empty means all."""

    def __init__(self, api: Api, store: Store, reconciler: Reconciler, namespaces: tuple[str, ...]) -> None:
        self._api = api
        self._store = store
        self._reconciler = reconciler
        self._namespaces = namespaces
        self.started = self.heard = time.monotonic()  # when anything last came
        self._heard_of: dict[str, float] = {}
        self.listed = time.monotonic()  # when a listing was last complete
        self._begun_anew = asyncio.Event()  # a watch stream has
        self._missed: dict[str, int] = {}  # kinds whose events were missing at the last listings

    @property
    def dead(self) -> str | None:
        """Why events can't be relied on any more, if that is so: liveness then fails and the pod is restarted."""
        for kind, times in self._missed.items():
            if times > 1:
                return f"no events of {kind} objects arrive: {times} listings in a row showed changes that were missed"
        if time.monotonic() - self.listed > 4 * LISTING_SECONDS:
            return f"no listing was completed for {time.monotonic() - self.listed:.0f} s"
        return None

    def registry(self) -> kopf.OperatorRegistry:
        """kopf's handlers."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(self._handler(names.KIND))
        for kind, resource in OWNED.items():
            kopf.on.event(*resource, registry=registry, labels={names.DEPLOYMENT: kopf.PRESENT})(self._handler(kind))
        return registry

    def settings(self) -> kopf.OperatorSettings:
        """kopf's settings: nothing but watching, and that only what is ours."""
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.scanning.disabled = True
        settings.persistence.diffbase_storage = _NoDiffs()
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 310
        settings.watching.connect_timeout = 10
        settings.watching.chunk_size = 250
        for resource in OWNED.values():
            settings.watching.label_selectors[resource] = names.DEPLOYMENT
        return settings

    async def run(self, stop: asyncio.Event) -> None:
        """Watches until `stop`."""
        await kopf.operator(
            registry=self.registry(),
            settings=self.settings(),
            standalone=True,
            # Its own would be made from the user's name, which a container needn't have.
            identity=cast(Any, names.FIELD_MANAGER),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=stop,
        )

    def _handler(self, kind: str) -> Any:
        async def handle(event: Mapping[str, Any], **_: Any) -> None:
            self.heard = self._heard_of[kind] = time.monotonic()
            if event["type"] is None:
                self._begun_anew.set()
            body = {**event["object"], "kind": kind}
            if event["type"] != "DELETED":
                key = self._store.put(body)
            elif kind != names.KIND and "deletionTimestamp" not in body["metadata"]:
                key = await self._lost_sight(body)
            else:
                key = self._store.drop(body)
            if key is not None:
                self._reconciler.wake(key)

        handle.__name__ = f"on_{kind.lower()}"
        return handle

    async def _lost_sight(self, body: Body) -> tuple[str, str] | None:
        """An object left our selection: it was removed, or somebody took our label off. A label is put back."""
        metadata = body["metadata"]
        place = (body["kind"], metadata["namespace"], metadata["name"])
        try:
            found = await self._api.get(*place)
            if found["metadata"]["uid"] == metadata["uid"] and "deletionTimestamp" not in found["metadata"]:
                patch = {"metadata": {"uid": metadata["uid"], "labels": metadata.get("labels", {})}}
                restored = await self._api.merge(*place, patch)
                log.warning("%s %s/%s: put our labels back", *place)
                return self._store.put(restored)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        return self._store.drop(body)

    async def keep_listing(self) -> None:
        """Compares the store with the API server at intervals; deletions that no event told of are found here. A stream
        that begins anew tells what there is, not what has gone meanwhile: then it is done soon."""
        while True:
            try:
                await self.list_all()
            except ApiError as error:
                log.warning("listing failed: %s", error)
            gc.collect()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun_anew.wait(), LISTING_SECONDS)
            await asyncio.sleep(_SETTLING_SECONDS)  # the streams of other kinds begin at the same time
            self._begun_anew.clear()

    async def list_all(self) -> None:
        """One listing of all that is ours. Nobody is woken before it is complete: a deployment without its pods would
        look like one that has lost them."""
        woken = set()
        for kind in (names.KIND, *OWNED):
            before = {body["metadata"]["uid"]: body for body in self._store.all_of(kind)}
            changed = False
            for namespace in self._namespaces or (None,):
                async for body in self._api.objects(kind, namespace, "" if kind == names.KIND else names.DEPLOYMENT):
                    known = body["metadata"]["uid"] in before
                    before.pop(body["metadata"]["uid"], None)
                    key = self._store.put(body)
                    if key is not None:
                        changed = changed or known
                        woken.add(key)
            for gone in before.values():
                if self._store.drop(gone) is not None:
                    changed = True
                    woken.add(_key(gone))
            # What only just happened may be on its way as an event.
            silent = time.monotonic() - self._heard_of.get(kind, self.started) > _SILENCE_SECONDS
            self._missed[kind] = self._missed.get(kind, 0) + 1 if changed and silent else 0
        self.listed = time.monotonic()
        for key in woken:
            self._reconciler.wake(key)


def _key(body: Body) -> tuple[str, str]:
    metadata = body["metadata"]
    name = metadata["name"] if body["kind"] == names.KIND else metadata["labels"][names.DEPLOYMENT]
    return metadata["namespace"], name


async def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account or KUBECONFIG, read by kopf itself: its default would load a second client library."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
