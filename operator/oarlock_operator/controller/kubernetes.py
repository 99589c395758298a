"""The reconcile loop's world as it is in production: snapshots from the store, writes to the API server."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment, parse
from oarlock_operator.api.status import ModelDeploymentStatus
from oarlock_operator.controller.client import Api, ApiError
from oarlock_operator.controller.cluster import Conflict, Key
from oarlock_operator.controller.events import EventRecorder
from oarlock_operator.controller.store import Store
from oarlock_operator.decide.actions import (
    Action,
    Apply,
    CreatePod,
    Delete,
    DeletePod,
    Event,
    Prune,
    SetFinalizer,
    WriteRoster,
)
from oarlock_operator.decide.conditions import invalid, stamped
from oarlock_operator.decide.progress import progress_from
from oarlock_operator.decide.snapshot import Progress, Snapshot, parse_time, pod_from

log = logging.getLogger(__name__)


class KubernetesCluster:
    """Implements `Cluster`."""

    def __init__(
        self,
        api: Api,
        store: Store,
        events: EventRecorder,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._store = store
        self._events = events
        self._clock = clock
        self._progress: dict[Key, dict[str, Progress]] = {}
        self._refused: dict[Key, str] = {}

    def snapshot(self, key: Key) -> Snapshot | None:
        body = self._store.deployments.get(key)
        if body is None:
            self._progress.pop(key, None)
            self._refused.pop(key, None)
            return None
        owned = self._store.owned(key)
        uid = body["metadata"]["uid"]
        mine = {place: found for place, found in owned.items() if _owner(found) == uid}
        pods = [pod_from(found) for (kind, _), found in sorted(mine.items()) if kind == "Pod"]
        return Snapshot(
            now=self._clock(),
            deployment=parse(body),
            deletion_time=parse_time(body["metadata"].get("deletionTimestamp")),
            pods=tuple(pod for pod in pods if pod is not None),
            objects={place: found for place, found in mine.items() if place[0] != "Pod"},
            progress=self._progress.get(key, {}),
            refused=self._refused.get(key, ""),
        )

    async def write_status(self, deployment: ModelDeployment, status: ModelDeploymentStatus) -> None:
        body = self._store.deployments.get((deployment.namespace, deployment.name))
        if body is None:
            raise Conflict
        metadata = {**body["metadata"], "resourceVersion": deployment.resource_version}
        await self._put_status({**body, "metadata": metadata, "status": status.to_wire()})

    async def _put_status(self, body: dict[str, Any]) -> None:
        try:
            self._store.put(await self._api.replace(body, "status"))
        except ApiError as error:
            if error.status in (404, 409):
                raise Conflict from None
            raise

    async def carry_out(self, deployment: ModelDeployment, action: Action) -> None:
        namespace = deployment.namespace
        try:
            match action:
                case Apply(body):
                    self._store.put(await self._api.apply(body))
                case Prune(kind, name, patch):
                    self._store.put(await self._api.merge(kind, namespace, name, patch))
                case Delete(kind, name, uid):
                    await self._api.delete(kind, namespace, name, uid)
                case CreatePod(body):
                    await self._create_pod((namespace, deployment.name), body)
                case WriteRoster(pod, uid, annotations):
                    patch = {"metadata": {"uid": uid, "annotations": dict(annotations)}}
                    self._store.put(await self._api.merge("Pod", namespace, pod, patch))
                case DeletePod(pod, uid, grace):
                    answer = await self._api.delete("Pod", namespace, pod, uid, grace)
                    if answer.get("kind") == "Pod":
                        self._store.put(answer)
                case SetFinalizer(present):
                    await self._set_finalizer(deployment, present)
        except ApiError as error:
            # Gone or not the one that was observed: events about it are on their way.
            if error.status == 404 or (error.status == 409 and not isinstance(action, Apply)):
                return
            raise

    async def _create_pod(self, key: Key, body: Any) -> None:
        try:
            self._store.put(await self._api.create(body))
            self._refused.pop(key, None)
        except ApiError as error:
            if error.status in (400, 403, 422):
                self._refused[key] = str(error)
            if error.status != 409:
                raise
            # It exists: made by us before a restart, and perhaps not heard of yet.
            metadata = body["metadata"]
            self._store.put(await self._api.get("Pod", metadata["namespace"], metadata["name"]))

    async def _set_finalizer(self, deployment: ModelDeployment, present: bool) -> None:
        key = (deployment.namespace, deployment.name)
        body = self._store.deployments.get(key)
        if body is None:
            return
        others = [name for name in body["metadata"].get("finalizers") or [] if name != names.FINALIZER]
        wanted = [*others, names.FINALIZER] if present else others
        patch = {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"], "finalizers": wanted}}
        try:
            self._store.put(await self._api.merge(names.KIND, *key, patch))
        except ApiError as error:
            if error.status == 409:
                raise Conflict from None
            raise

    def report(self, deployment: ModelDeployment, event: Event) -> None:
        self._events.record(deployment, event, self._clock())

    async def sample_progress(self, key: Key, pods: tuple[str, ...]) -> None:
        logs = await asyncio.gather(*(self._last_lines(key[0], pod) for pod in pods))
        before = self._progress.get(key, {})
        found = {pod: progress_from(text) or before.get(pod) for pod, text in zip(pods, logs, strict=True)}
        self._progress[key] = {pod: progress for pod, progress in found.items() if progress is not None}

    async def _last_lines(self, namespace: str, pod: str) -> str:
        try:
            return await self._api.log_tail(namespace, pod, names.DOWNLOAD_CONTAINER, 3)
        except ApiError as error:
            log.debug("no log of %s: %s", pod, error)
            return ""

    async def refresh(self, key: Key) -> None:
        try:
            self._store.put(await self._api.get(names.KIND, *key))
        except ApiError as error:
            body = self._store.deployments.get(key)
            if error.status == 404 and body is not None:
                self._store.drop(body)
            elif error.status != 404:
                raise

    async def report_unreadable(self, key: Key, message: str) -> None:
        body = self._store.deployments.get(key)
        if body is None:
            return
        before = ModelDeploymentStatus.model_validate(body.get("status") or {})
        generation = int(body["metadata"].get("generation") or 0)
        found = stamped(invalid(message), before.conditions, generation, self._clock())
        status = before.model_copy(update={"conditions": found, "observed_generation": generation})
        if status != before:
            await self._put_status({**body, "status": status.to_wire()})


def _owner(body: Any) -> str | None:
    references = body["metadata"].get("ownerReferences") or ()
    return next((reference["uid"] for reference in references if reference.get("controller")), None)
