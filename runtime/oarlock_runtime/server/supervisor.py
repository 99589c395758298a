"""The parent of a server's processes (pid 1 in a pod): starts them, tells their health, drains them, ends with them.

It imports neither numpy nor a web framework, loads nothing itself, and restarts nothing: when a child dies, the server
says which one and why, and ends. Children die with it, even when it is killed.

Order of a life: take the ports → fetch the model, if its address is remote → start the engine and the servers → ready
→ serve → (SIGTERM) drain → stop. The exit code is 0 after a drain, 1 after a failure, 128 + n when a second signal n
cut the drain short.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from oarlock_runtime.errors import OarlockError, SettingError
from oarlock_runtime.server.announcement import ready_lines
from oarlock_runtime.server.child import Child
from oarlock_runtime.server.health import Health, State
from oarlock_runtime.server.light_http import LightHttp
from oarlock_runtime.server.log_files import Reporter
from oarlock_runtime.server.paddle.config_keys import applied, read_config
from oarlock_runtime.server.place import Place, place_of
from oarlock_runtime.server.ports import hold, listen
from oarlock_runtime.server.reporter import reporter_of
from oarlock_runtime.server.scrapes import Scrapes
from oarlock_runtime.settings import Settings

_PACKAGE = "oarlock_runtime.server"
_STOP_SECONDS = 5.0  # for a child that was told to end
_FAREWELL_SECONDS = 1.0  # for servers to tell their clients that the engine is gone
_WATCH_SECONDS = 0.5


def main(settings: Settings, reporter: Reporter | None = None) -> int:
    """Serves until told to stop; returns the exit code. SettingError before anything is started."""
    started = time.monotonic()
    if not settings.model:
        raise SettingError("no model is given: say `--model PATH`, or set MODEL_DIR")
    here = "://" not in settings.model and settings.load_format != "dummy"  # which takes the name of a preset, too
    if here and not Path(settings.model).expanduser().exists():
        source = settings.sources.get("model", "model").replace("argument", "MODEL")
        raise SettingError(
            f"{source}={settings.model!r}: no such file or directory; an address such as hf://… is fetched"
        )
    if not settings.port and not settings.grpc_port:
        raise SettingError("--port and --grpc-port are both off; nobody could call")
    place = place_of(settings)
    leads = place.node == 0  # only the host of rank 0 answers clients
    ports = (("health_port", 1), ("metrics_port", 1), ("port", settings.server_processes if leads else 0))
    with contextlib.ExitStack() as stack:
        reporter = reporter_of(settings, reporter, stack)
        sockets = [
            [stack.enter_context(one) for one in listen(settings, name, share)] if getattr(settings, name) else []
            for name, share in ports
        ]
        if settings.grpc_port and leads:
            stack.enter_context(hold(settings, "grpc_port"))
        reporter.line("configuration (name, value, source):")
        for line in settings.effective():
            reporter.line("  " + line)
        if not settings.run_dir:
            made = tempfile.mkdtemp(prefix="oarlock-")
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            settings = replace(settings, run_dir=made)
        os.makedirs(settings.run_dir, mode=0o700, exist_ok=True)
        return asyncio.run(_Supervisor(settings, place, reporter, started).run(*sockets))


class _FailedError(OarlockError):
    """The server can't go on."""


class _Supervisor:
    def __init__(self, settings: Settings, place: Place, reporter: Reporter, started: float) -> None:
        self._settings = settings
        self._place = place
        self._report = reporter
        self._started = started
        self._health = Health(settings)
        self._children: list[Child] = []
        self._signals = 0
        self._last_signal = 0
        self._changed = asyncio.Event()  # a child told something or ended, or a signal came
        self._idle: set[Child] = set()
        self._left: set[Child] = set()  # workers whose rank 0 has ended
        self._scrapes = Scrapes()

    async def run(self, health: list[socket.socket], metrics: list[socket.socket], api: list[socket.socket]) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        pages = [LightHttp(self._health.pages()), LightHttp({"/metrics": self._metrics})]
        await pages[0].start(health[0])
        await pages[1].start(metrics[0])
        code = 1
        try:
            code = await self._live(api)
        except _FailedError as error:
            self._health.state = State.FAILED
            self._report.line(f"oarlock: {error}")
            for child in self._children:
                child.control.send("failed", reason=str(error))
            await self._wait(lambda: not self._alive("server"), _FAREWELL_SECONDS)
        finally:
            await self._end_all()
            for one in pages:
                one.close()
        return code

    async def _live(self, api: list[socket.socket]) -> int:
        deadline = self._started + self._settings.start_timeout
        settings = self._settings = self._with_model_config(await self._fetched(deadline))
        first = {"settings": settings.to_json()}
        for rank in self._place.local_ranks:
            if rank == 0:
                self._start("engine", "engine_process", first)
            else:
                self._start(f"rank-{rank}", "worker_process", {**first, "rank": rank})
        for index in range(settings.server_processes if self._place.node == 0 else 0):
            name = "server" if settings.server_processes == 1 else f"server-{index}"
            words: dict[str, Any] = {**first, "name": name}
            if api:
                words["listener"] = api[index].fileno()
            self._start(name, "server_process", words, *api[index : index + 1])
        for listener in api:
            listener.close()  # so that the port closes with the servers
        await self._wait(lambda: all(child.ready for child in self._children), deadline - time.monotonic())
        if not self._signals:
            if not all(child.ready for child in self._children):
                late = ", ".join(child.name for child in self._children if not child.ready)
                raise _FailedError(f"not ready after {self._settings.start_timeout:g} s: {late}")
            self._health.serve(self._children)
            seconds = time.monotonic() - self._started
            for line in ready_lines(settings, self._place, self._children[0].facts, seconds):
                self._report.line(line)
            async with self._watch():
                await self._wait(self._all_left, None)
        return await (self._drain() if self._place.node == 0 else self._follow_to_the_end())

    async def _fetched(self, deadline: float) -> Settings:
        """The settings with the model on this machine."""
        if "://" not in self._settings.model:
            return self._settings
        child = self._start("download", "fetch_process", {"settings": self._settings.to_json()})
        await self._wait(lambda: child.exit_status == 0, deadline - time.monotonic(), ends_well=child)
        self._children.remove(child)
        path = child.facts.get("path")
        if path is None:
            if self._signals:
                return self._settings
            raise _FailedError(f"the model was not there after {self._settings.start_timeout:g} s")
        # A package or a web address names its file better than itself; a hub's and a catalogue's names people know.
        settings = self._settings
        named = settings.model.startswith(("hf://", "paddle://"))
        known = settings.served_model_name or (settings.model_name if named else "")
        return replace(settings, model=path, served_model_name=known)

    def _with_model_config(self, settings: Settings) -> Settings:
        """The settings as the model's export wants them."""
        changed, warnings = applied(settings, read_config(settings), os.environ)
        for warning in warnings:
            self._report.line(f"warning: {warning}")
        for line in changed.effective():
            if "(config.json)" in line:
                self._report.line(f"  {line}")
        return changed

    def _start(self, name: str, module: str, first: dict[str, Any], listener: socket.socket | None = None) -> Child:
        environ = dict(os.environ)
        for setting in ("cpu_isa", "cuda_kernels"):  # read by the core itself
            if (value := getattr(self._settings, setting)) != "auto":
                environ[f"OARLOCK_{setting.upper()}"] = value
        child = Child(
            name,
            f"{_PACKAGE}.{module}",
            first,
            on_message=self._on_message,
            on_line=lambda child, line: self._report.line(f"{child.name}: {line}"),
            environ=environ,
            inherited=() if listener is None else (listener.fileno(),),
        )
        self._children.append(child)
        return child

    def _alive(self, prefix: str = "") -> list[Child]:
        return [child for child in self._children if child.exit_status is None and child.name.startswith(prefix)]

    def _on_message(self, child: Child, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "loading":
                self._report.progress(message["what"], message["share"])
                return
            case "idle":
                self._idle.add(child)
            case "left":
                self._left.add(child)
            case "metrics":
                self._scrapes.take(message["number"], message["families"])
                return
            case "beat":
                return
        self._changed.set()

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        self._last_signal = number
        self._health.state = State.DRAINING
        self._changed.set()
        if self._signals > 1:
            for child in self._children:
                child.kill()

    def _reap(self) -> None:
        """Takes leave of children that ended; as pid 1 also of strangers that were left to us."""
        by_pid = {child.pid: child for child in self._children}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in by_pid:
                by_pid[pid].reaped(status)
        self._changed.set()

    async def _wait(self, done: Callable[[], bool], seconds: float | None, ends_well: Child | None = None) -> None:
        """Returns when `done`, after `seconds`, or on a signal. Raises _FailedError when a child ends."""
        signals = self._signals
        failing = self._health.state is State.FAILED
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else max(seconds, 0)):
                while not done() and (failing or self._signals == signals):
                    self._changed.clear()
                    await self._changed.wait()
                    if not failing and self._signals < 2:
                        self._check(ends_well)

    @contextlib.asynccontextmanager
    async def _watch(self) -> AsyncIterator[None]:
        """Of a split model: a rank that hangs ends the server, because the others can do nothing without it."""

        async def look() -> None:
            while True:
                await asyncio.sleep(_WATCH_SECONDS)
                if self._health.hung_ranks():
                    self._changed.set()

        watch = asyncio.create_task(look()) if self._place.split else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()

    def _check(self, ends_well: Child | None) -> None:
        if self._place.split and (hung := self._health.hung_ranks()):
            for child in hung:
                child.kill()
            raise _FailedError(f"{', '.join(child.name for child in hung)} has been silent for too long")
        for child in self._children:
            well = child is ends_well or child in self._left
            if child.exit_status is not None and not (well and child.exit_status == 0):
                said = "".join(f"\n  {child.name}: {line}" for line in child.tail)
                raise _FailedError(child.reason() + (f"; its last words:{said}" if said and not child.error else ""))

    async def _drain(self) -> int:
        """Lets running calls finish, then ends everything."""
        seconds = self._settings.drain_seconds
        if self._signals < 2:
            self._report.line(f"stopping: running requests have {seconds:g} s to finish")
            servers = self._alive("server")
            for child in self._alive():
                child.control.send("drain")
            await self._wait(lambda: all(child in self._idle or not child.ready for child in servers), seconds)
            left = sum(1 for child in servers if child.ready and child not in self._idle)
            if self._signals < 2 and left:
                self._report.line("the drain time is over; the remaining requests are ended")
        if self._signals > 1:
            self._report.line("stopped at once by a second signal")
            return 128 + self._last_signal
        self._report.line("stopped")
        return 0

    def _all_left(self) -> bool:
        """Whether rank 0, on another host, has dismissed all ranks of this one."""
        return self._place.node > 0 and self._left.issuperset(self._children)

    async def _follow_to_the_end(self) -> int:
        """A host without rank 0: goes on until that has answered its clients, or the time for it is over."""
        if self._signals < 2 and not self._all_left():
            seconds = self._settings.drain_seconds
            self._report.line(f"stopping: rank 0 has {seconds:g} s to finish its requests")
            await self._wait(self._all_left, seconds)
        if self._signals > 1:
            self._report.line("stopped at once by a second signal")
            return 128 + self._last_signal
        self._report.line("stopped: rank 0 has ended" if self._all_left() else "stopped")
        return 0

    async def _end_all(self) -> None:
        """Servers first (they tell their clients), then the engine, then ranks; whoever doesn't leave is killed."""
        self._health.state = State.FAILED if self._health.state is State.FAILED else State.DRAINING
        for prefix in ("server", "engine", ""):
            leaving = self._alive(prefix)
            for child in leaving:
                child.control.send("stop")
            waits = [asyncio.ensure_future(child.ended.wait()) for child in leaving]
            if waits and self._signals < 2:
                await asyncio.wait(waits, timeout=_STOP_SECONDS)
            for child in leaving:
                child.kill()
            if waits:
                await asyncio.wait(waits, timeout=_STOP_SECONDS)
            for wait in waits:
                wait.cancel()

    async def _metrics(self) -> tuple[int, str, bytes]:
        servers = [child for child in self._alive("server") if child.ready]
        own = self._health.families(self._children)
        return await self._scrapes.page(servers, self._alive("engine"), own, self._settings)
