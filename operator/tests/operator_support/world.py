"""A cluster that exists only in memory: carries out decisions on frozen pods and plays the kubelet, step by step."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from operator_support.builders import body

from oarlock_operator.api import names
from oarlock_operator.api.deployment import parse
from oarlock_operator.api.status import Condition, Group, ModelDeploymentStatus
from oarlock_operator.decide.actions import (
    Apply,
    CreatePod,
    Decision,
    Delete,
    DeletePod,
    Event,
    Prune,
    SetFinalizer,
    WriteRoster,
)
from oarlock_operator.decide.decision import decide
from oarlock_operator.decide.snapshot import Container, Object, Pod, Progress, Snapshot, pod_from
from oarlock_operator.render.settings import RenderSettings

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """`run()` lets everything settle; the other methods make things happen."""

    def __init__(self, **spec: Any) -> None:
        self.body = body(**spec)
        self.now = START
        self.deletion_time: datetime | None = None
        self.pods: dict[str, Pod] = {}
        self.objects: dict[tuple[str, str], Object] = {}
        self.progress: dict[str, Progress] = {}
        self.settings = RenderSettings()
        self.events: list[Event] = []
        self.created: list[str] = []
        self.downloading = False  # while True, downloads don't end
        self.loading = False  # while True, servers don't become ready
        self.scheduling = True  # while False, pods find no node
        self.broken: set[str] = set()  # revisions whose server dies at once
        self.refused = ""
        self.writes = 0
        self._number = 0

    # The operator

    def snapshot(self) -> Snapshot:
        pods = tuple(self.pods[name] for name in sorted(self.pods))
        return Snapshot(
            self.now,
            parse(self.body),
            self.deletion_time,
            pods,
            dict(self.objects),
            dict(self.progress),
            self.refused,
        )

    def decide(self) -> Decision:
        return decide(self.snapshot(), self.settings)

    def reconcile(self, crash_after: int | None = None) -> Decision:
        """One round; `crash_after` ends it after so many writes, the status being the first."""
        decision = self.decide()
        budget = crash_after if crash_after is not None else 1 << 30
        status = decision.status.to_wire()
        if status != self.body.get("status"):
            if budget == 0:
                return decision
            budget -= 1
            self.writes += 1
            self.body["status"] = status
        self.events += decision.events
        for action in decision.actions:
            if budget == 0:
                return decision
            budget -= 1
            self.writes += 1
            self.carry_out(action)
        return decision

    def carry_out(self, action: object) -> None:
        match action:
            case Apply(found) | CreatePod(found) if found["kind"] != "Pod":
                self.objects[found["kind"], found["metadata"]["name"]] = found
            case CreatePod(found):
                self._create(found)
            case Delete(kind, name, _):
                self.objects.pop((kind, name), None)
            case Prune():
                pass
            case WriteRoster(name, uid, annotations):
                pod = self.pods[name]
                assert pod.uid == uid
                self.pods[name] = replace(
                    pod, roster_ips=annotations[names.POD_IPS], roster_uids=annotations[names.ROSTER_UIDS]
                )
            case DeletePod(name, uid, grace):
                assert self.pods[name].uid == uid
                seconds = parse(self.body).spec.grace_seconds if grace is None else grace
                self.pods[name] = replace(self.pods[name], deletion_due=self.now + timedelta(seconds=seconds))
            case SetFinalizer(present):
                self.body["metadata"]["finalizers"] = [names.FINALIZER] if present else []
            case _:
                raise AssertionError(action)

    def _create(self, found: Object) -> None:
        name = found["metadata"]["name"]
        if name in self.pods:
            return
        self._number += 1
        pod = pod_from({**found, "metadata": {**found["metadata"], "uid": f"uid-{self._number}"}})
        assert pod is not None
        self.pods[name] = pod
        self.created.append(name)

    # The kubelet

    def tick(self, seconds: float = 1.0) -> None:
        """Every pod comes one step further."""
        self.now += timedelta(seconds=seconds)
        for name, pod in list(self.pods.items()):
            if pod.deletion_due is not None and pod.node != "dead":
                if pod.deletion_due <= self.now:
                    del self.pods[name]
                continue
            self.pods[name] = self._further(pod)

    def _further(self, pod: Pod) -> Pod:
        if pod.node in ("", "dead"):
            if not self.scheduling or pod.node == "dead":
                return replace(pod, unschedulable="" if self.scheduling else "0/2 nodes are available")
            self._number += 1
            return replace(pod, node=f"n{pod.rank}", ip=f"10.0.0.{self._number}", unschedulable="")
        for number, container in enumerate(pod.init):
            if container.done:
                continue
            waiting = pod.formed if container.name == names.ROSTER_CONTAINER else not self.downloading
            if container.running and waiting:
                new = replace(container, running=False, exit_code=0)
            elif container.running:
                return pod
            else:
                new = replace(container, running=True, exit_code=None)
            return replace(pod, init=(*pod.init[:number], new, *pod.init[number + 1 :]))
        if pod.revision in self.broken:
            return self._crashed(pod)
        if not pod.server.running:
            return replace(pod, server=replace(pod.server, running=True))
        return pod if self.loading else replace(pod, ready=True, server=replace(pod.server, ready=True))

    def _crashed(self, pod: Pod) -> Pod:
        ended = Container(names.SERVER_CONTAINER, restarts=1, exit_code=1, exit_message="out of memory")
        return replace(pod, ready=False, server=ended)

    # What happens

    def run(self, rounds: int = 60) -> None:
        for _ in range(rounds):
            self.reconcile()
            self.tick()
        self.reconcile()

    def change(self, **spec: Any) -> None:
        self.body["spec"] = {**self.body["spec"], **spec}
        self.body["metadata"]["generation"] += 1

    def kill(self, name: str) -> None:
        self.pods[name] = self._crashed(self.pods[name])

    def remove(self, name: str) -> None:
        del self.pods[name]

    def alter(self, name: str, **fields: Any) -> None:
        self.pods[name] = replace(self.pods[name], **fields)

    def delete(self) -> None:
        self.deletion_time = self.now
        self.body["metadata"]["deletionTimestamp"] = self.now.isoformat()

    # What is seen

    @property
    def status(self) -> ModelDeploymentStatus:
        return parse(self.body).status

    def condition(self, kind: str) -> Condition:
        return next(condition for condition in self.status.conditions if condition.type == kind)

    def group(self, index: int) -> Group:
        return next(group for group in self.status.groups if group.index == index)

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events]

    def serving(self) -> list[str]:
        """Pods that the Service would send requests to."""
        return sorted(pod.name for pod in self.pods.values() if pod.rank == 0 and pod.ready and not pod.deleting)
