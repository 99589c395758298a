"""One pod as processes: init containers one after the other, then the server with its probes; told like a kubelet does.

Paths of volumes in commands and variables are replaced by folders of this machine; the pod's address is one of the
loopback network, so that every pod has the same ports.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.local.address import Address
from oarlock_operator.local.probes import Probes
from oarlock_operator.local.process import Process, tail
from oarlock_operator.render.volumes import MODELS, ROSTER

_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_FIELD = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


@dataclass(frozen=True)
class Place:
    """Where a pod's files and programs are."""

    models: Path  # the cache of models, shared by all pods
    folder: Path  # the pod's own: logs, /tmp, roster
    oarlock: str  # the runtime's program
    share: Mapping[str, str]  # variables that count where the spec says nothing


class LocalPod:
    """`body` is the pod as the operator rendered it, with uid and address added."""

    def __init__(
        self,
        body: Mapping[str, Any],
        uid: str,
        address: Address,
        place: Place,
        changed: Callable[[], None],
        gpus: list[int],
    ) -> None:
        self.metadata: dict[str, Any] = {**body["metadata"], "uid": uid, "annotations": {}}
        self.spec: Mapping[str, Any] = body["spec"]
        self.address = address
        self.gpus = gpus
        self.deletion_due: datetime | None = None
        self._place = place
        self._changed = changed
        self._states: dict[str, dict[str, Any]] = {}
        self._ready = False
        self._verdict = ""  # of the probes, once they have ended the server
        self._process: Process | None = None
        self._leave = asyncio.Event()
        (place.folder / "roster").mkdir(parents=True, exist_ok=True)
        (place.folder / "tmp").mkdir(exist_ok=True)
        self.task = asyncio.create_task(self._live(), name=self.name)

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def ip(self) -> str:
        return self.address.ip

    @property
    def ready(self) -> bool:
        return self._ready and self.deletion_due is None

    @property
    def doing(self) -> str:
        """What it says about its own progress, while it isn't ready."""
        if self._ready or self._process is None:
            return ""
        said = self._process.tail(1)
        return "" if said.startswith(" ") else said  # its settings, one a line, are no news

    def body(self) -> dict[str, Any]:
        """The pod as the API server would show it."""
        metadata = dict(self.metadata)
        if self.deletion_due is not None:
            metadata["deletionTimestamp"] = self.deletion_due.isoformat()
        init = [container["name"] for container in self.spec["initContainers"]]
        return {
            "kind": "Pod",
            "metadata": metadata,
            "spec": {**self.spec, "nodeName": "this machine"},
            "status": {
                "phase": "Running" if names.SERVER_CONTAINER in self._states else "Pending",
                "podIP": self.ip,
                "conditions": [{"type": "Ready", "status": str(self._ready)}],
                "initContainerStatuses": [self._states[name] for name in init if name in self._states],
                "containerStatuses": [state for name, state in self._states.items() if name not in init],
            },
        }

    def annotate(self, annotations: Mapping[str, str]) -> None:
        """Writes annotations, and the files of the volume that shows them."""
        self.metadata["annotations"] |= annotations
        file = self._place.folder / "roster" / "pod-ips"
        file.with_suffix(".new").write_text(self.metadata["annotations"].get(names.POD_IPS, ""))
        os.replace(file.with_suffix(".new"), file)
        self._changed()

    def leave(self, grace: int) -> None:
        """Begins to end the pod; a shorter grace later on counts, a longer one doesn't."""
        due = datetime.now(UTC) + timedelta(seconds=grace)
        if self.deletion_due is None or due < self.deletion_due:
            self.deletion_due = due
            self._leave.set()
            self._changed()

    def kill(self) -> None:
        """Ends all processes of the pod at once."""
        self.task.cancel()
        if self._process is not None:
            self._process.kill()

    def download_log(self) -> str:
        """The last lines of the download, while it runs."""
        running = "running" in self._states.get(names.DOWNLOAD_CONTAINER, {}).get("state", {})
        return tail(self._log(names.DOWNLOAD_CONTAINER), 3) if running else ""

    async def _live(self) -> None:
        try:
            for container in self.spec["initContainers"]:
                if not await self._until_it_succeeds(container):
                    return
            (server,) = self.spec["containers"]
            await self._serve(server)
        finally:
            if self._process is not None:
                self._process.kill()

    async def _until_it_succeeds(self, container: Mapping[str, Any]) -> bool:
        """Runs an init container until it ends well; False when the pod has to leave."""
        attempt = 0
        while not self._leave.is_set():
            code = await self._run(container, attempt)
            if code == 0:
                return True
            pause = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leave.wait(), pause)
            attempt += 1
        return False

    async def _serve(self, container: Mapping[str, Any]) -> None:
        probing: asyncio.Task[None] | None = None

        def started() -> None:
            nonlocal probing
            probing = asyncio.create_task(self._probe(container))

        try:
            # Ended or not: the operator decides what comes next.
            await self._run(container, 0, started)
        finally:
            self._ready = False
            if probing is not None:
                probing.cancel()
        self._changed()
        await self._leave.wait()

    async def _run(
        self, container: Mapping[str, Any], restarts: int, started: Callable[[], None] = lambda: None
    ) -> int:
        """One run of a container; its exit code."""
        name = container["name"]
        try:
            command = [self._local(word) for word in container.get("command") or ("oarlock", "serve")]
            if command[0] == "oarlock":
                command[0] = self._place.oarlock
            self._process = await Process.start(command, self._environment(container), self._log(name))
        except OSError as error:
            self._state(name, {"terminated": {"exitCode": 127, "message": str(error)}}, restarts)
            return 127
        self._state(name, {"running": {}}, restarts)
        started()
        process = self._process
        waiting = asyncio.create_task(process.wait())
        leaving = asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                process.terminate()
            while not waiting.done() and self.deletion_due is not None:
                # The grace may be shortened meanwhile.
                left = (self.deletion_due - datetime.now(UTC)).total_seconds()
                if left <= 0:
                    process.kill()
                    break
                await asyncio.wait({waiting}, timeout=min(left, 0.5))
            code = await waiting
        finally:
            leaving.cancel()
            waiting.cancel()
        self._process = None
        message = (self._verdict or process.tail()) if code else ""
        if code < 0:  # as a kubelet tells of a signal
            message, code = self._verdict or f"killed by {signal.Signals(-code).name}", 128 - code
        self._state(name, {"terminated": {"exitCode": code, "message": message}}, restarts)
        return code

    def _state(self, name: str, state: dict[str, Any], restarts: int) -> None:
        self._states[name] = {"name": name, "state": state, "restartCount": restarts, "ready": False}
        self._changed()

    async def _probe(self, container: Mapping[str, Any]) -> None:
        def tell(ready: bool) -> None:
            if ready != self._ready:
                self._ready = ready
                self._states[container["name"]]["ready"] = ready
                self._changed()

        process = self._process
        self._verdict = await Probes(container, self.ip, tell).watch()
        if process is not None:
            process.kill()

    def _log(self, container: str) -> Path:
        return self._place.folder / f"{container}.log"

    def _local(self, text: str) -> str:
        """Paths of volumes as folders of this machine."""
        for inside, outside in ((ROSTER, self._place.folder / "roster"), (MODELS, self._place.models)):
            text = re.sub(rf"(?<![\w.-]){re.escape(inside)}(?=/|$|\s)", str(outside), text)
        return text

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith("OARLOCK_")}
        found |= self._place.share
        for variable in container.get("env") or ():
            name = variable["name"]
            if name == "HOME":
                continue  # the user's own: pip's and the hub's configuration are there
            if "value" in variable:
                found[name] = self._local(variable["value"])
            elif (value := self._from_field(variable.get("valueFrom") or {})) is not None:
                found[name] = value
            elif name in os.environ:
                found[name] = os.environ[name]  # Secrets aren't read here: what the terminal has under that name counts
        if "OARLOCK_HOST" in found:
            found["OARLOCK_HOST"] = self.ip
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpus))
        found["TMPDIR"] = str(self._place.folder / "tmp")
        return found

    def _from_field(self, source: Mapping[str, Any]) -> str | None:
        path = (source.get("fieldRef") or {}).get("fieldPath", "")
        if path == "status.podIP":
            return self.ip
        if path == "metadata.name":
            return self.name
        if match := _FIELD.fullmatch(path):
            return str(self.metadata.get(match[1], {}).get(match[2], ""))
        return None
