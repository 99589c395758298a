"""The reconcile loop's world on this machine: pods are processes, the API server is a few dictionaries."""

import itertools
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment, parse
from oarlock_operator.api.status import DownloadProgress, ModelDeploymentStatus
from oarlock_operator.controller.cluster import Key
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
from oarlock_operator.decide.progress import download_progress, progress_from
from oarlock_operator.decide.snapshot import Object, Progress, Snapshot, parse_time, pod_from
from oarlock_operator.local.address import take_address
from oarlock_operator.local.pod import LocalPod, Place


class LocalCluster:
    """Implements `Cluster` for one deployment. `wake` is called when anything changed."""

    def __init__(self, body: Mapping[str, Any], models: Path, folder: Path, oarlock: str, gpus: int) -> None:
        metadata = {"namespace": "local", **body["metadata"], "uid": "local", "generation": 1, "resourceVersion": "1"}
        self.body: dict[str, Any] = {**body, "metadata": metadata}
        self.key: Key = (metadata["namespace"], metadata["name"])
        self.pods: dict[str, LocalPod] = {}
        self.wake: Callable[[Key], None] = lambda key: None
        self.told: Callable[[Event], None] = lambda event: None
        self.gone = False
        self._objects: dict[tuple[str, str], Object] = {}
        self._progress: dict[str, Progress] = {}
        self._models, self._folder, self._oarlock = models, folder, oarlock
        self._gpus, self._free_gpus = gpus, set(range(gpus))
        self._waiting: dict[str, Mapping[str, Any]] = {}  # pods for which no GPUs are free
        self._numbers = itertools.count(1)

    @property
    def status(self) -> ModelDeploymentStatus:
        return parse(self.body).status

    def leaders(self) -> list[str]:
        """Addresses of the leaders that are ready."""
        found = [pod for pod in self.pods.values() if pod.ready and pod.metadata["labels"][names.RANK] == "0"]
        return [pod.ip for pod in found]

    def download(self) -> DownloadProgress | None:
        """How far the model is fetched at this moment."""
        found = {name: progress_from(pod.download_log()) for name, pod in self.pods.items()}
        return download_progress({name: progress for name, progress in found.items() if progress is not None})

    def doing(self) -> dict[str, str]:
        """What members that aren't ready say of themselves, by pod."""
        return {name: pod.doing for name, pod in self.pods.items() if pod.doing}

    def change(self, spec: Mapping[str, Any]) -> None:
        """A new spec was applied."""
        if spec != self.body["spec"]:
            self.body["spec"] = spec
            self.body["metadata"]["generation"] += 1
            self.wake(self.key)

    def delete(self) -> None:
        """The deployment is to go; its pods drain."""
        self.body["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).isoformat())
        self.wake(self.key)

    def kill(self) -> None:
        """Ends all processes at once."""
        for pod in self.pods.values():
            pod.kill()

    # What the reconcile loop asks for

    def snapshot(self, key: Key) -> Snapshot | None:
        if self.gone:
            return None
        bodies = [*(pod.body() for pod in self.pods.values()), *map(self._unplaced, self._waiting.values())]
        pods = [pod_from(body) for body in bodies]
        return Snapshot(
            now=datetime.now(UTC),
            deployment=parse(self.body),
            deletion_time=parse_time(self.body["metadata"].get("deletionTimestamp")),
            pods=tuple(pod for pod in pods if pod is not None),
            objects=dict(self._objects),
            progress=dict(self._progress),
        )

    async def write_status(self, deployment: ModelDeployment, status: ModelDeploymentStatus) -> None:
        self.body["status"] = status.to_wire()

    async def carry_out(self, deployment: ModelDeployment, action: Action) -> None:
        match action:
            case Apply(body):
                self._objects[body["kind"], body["metadata"]["name"]] = body
            case Delete(kind, name, _):
                self._objects.pop((kind, name), None)
            case Prune():
                pass  # nobody else writes here
            case CreatePod(body):
                self._create(body)
            case WriteRoster(name, uid, annotations):
                if name in self.pods and self.pods[name].metadata["uid"] == uid:
                    self.pods[name].annotate(annotations)
            case DeletePod(name, uid, grace):
                self._waiting.pop(name, None)
                if name in self.pods and self.pods[name].metadata["uid"] == uid:
                    self.pods[name].leave(deployment.spec.grace_seconds if grace is None else grace)
            case SetFinalizer(present):
                self.body["metadata"]["finalizers"] = [names.FINALIZER] if present else []
                self.gone = not present
                self.wake(self.key)

    def report(self, deployment: ModelDeployment, event: Event) -> None:
        self.told(event)

    async def sample_progress(self, key: Key, pods: tuple[str, ...]) -> None:
        found = {name: progress_from(self.pods[name].download_log()) for name in pods if name in self.pods}
        self._progress = {name: progress for name, progress in found.items() if progress is not None}

    async def refresh(self, key: Key) -> None:
        """Nothing to do: nobody else writes here."""

    async def report_unreadable(self, key: Key, message: str) -> None:
        self.told(Event("InvalidSpec", message, "Warning"))

    # Pods

    def _create(self, body: Mapping[str, Any]) -> None:
        name = body["metadata"]["name"]
        if name in self.pods:
            return
        spec = parse(self.body).spec
        wanted = spec.parallelism.gpus_per_node
        if wanted > len(self._free_gpus):
            self._waiting[name] = body
            return
        self._waiting.pop(name, None)
        models = Path(spec.model.host_path) if spec.model.host_path else self._models
        place = Place(models, self._folder / name, self._oarlock, self._share())
        uid = f"{name}-{next(self._numbers)}"
        address = take_address()
        gpus = sorted(self._free_gpus)[:wanted]
        self._free_gpus -= set(gpus)
        pod = LocalPod(body, uid, address, place, lambda: self.wake(self.key), gpus)
        self.pods[name] = pod
        pod.task.add_done_callback(lambda _: self._ended(pod))

    def _share(self) -> dict[str, str]:
        """This machine's memory and cores are there once, for all pods; each would take them for itself."""
        spec = parse(self.body).spec
        pods = spec.replicas * spec.parallelism.nodes
        if pods < 2 or spec.parallelism.gpus_per_node:
            return {}
        cores = len(os.sched_getaffinity(0))
        return {"OARLOCK_KV_MEMORY_SHARE": f"{0.5 / pods:.4f}", "OARLOCK_THREADS": str(max(cores // pods, 1))}

    def _ended(self, pod: LocalPod) -> None:
        if self.pods.get(pod.name) is pod:
            del self.pods[pod.name]
        pod.address.release()
        self._free_gpus |= set(pod.gpus)
        for body in list(self._waiting.values()):
            self._create(body)
        self.wake(self.key)

    def _unplaced(self, body: Mapping[str, Any]) -> dict[str, Any]:
        message = f"this machine has {self._gpus} GPUs, and {len(self._free_gpus)} of them are free"
        scheduled = {"type": "PodScheduled", "status": "False", "message": message}
        metadata = {**body["metadata"], "uid": "waiting"}
        return {"kind": "Pod", "metadata": metadata, "spec": body["spec"], "status": {"conditions": [scheduled]}}
