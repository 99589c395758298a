"""The process that holds the model: loads it, then runs the engine's loop over the servers' socket.

One thread steps; another waits for the supervisor's words. The heartbeat is sent by the stepping thread, so that it
stops when the loop does.
"""

import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.executor import CoreExecutor, batched_tokens, usable_threads
from oarlock_runtime.engine.ranks import Ranks
from oarlock_runtime.engine.request import NAME_IN_USE, TokenFilter
from oarlock_runtime.errors import OarlockError, RequestError
from oarlock_runtime.ipc.messages import AbortRequests, AddRequest, EngineReady
from oarlock_runtime.ipc.sockets import IDLE_SECONDS, EngineSocket, request_of
from oarlock_runtime.models.dummy import dummy_tokenizer
from oarlock_runtime.models.tokenizer import load_tokenizer
from oarlock_runtime.server.control import Control
from oarlock_runtime.server.floor import FloorMeter
from oarlock_runtime.server.model_load import context_of, join_ranks, load_model, open_model
from oarlock_runtime.server.place import peer_limit, place_of
from oarlock_runtime.server.process import run
from oarlock_runtime.server.warmup import warm_up
from oarlock_runtime.settings import Settings

if TYPE_CHECKING:
    from oarlock_runtime.engine.grammar import Grammars

_log = logging.getLogger("oarlock.engine")
BEAT_SECONDS = 0.5
FOLLOWER_BEAT_SECONDS = 1.0
GRAMMARS_SECONDS = 5.0  # for the tables of the vocabulary, which a request may come too early for


def main(control: Control, settings: Settings, first: dict[str, Any]) -> None:
    place = place_of(settings)
    checkpoint = open_model(settings, place, 0)
    context = context_of(settings, checkpoint.spec.max_context)
    ranks = join_ranks(settings, checkpoint, place, 0, control)
    executor = load_model(settings, checkpoint, context, control, ranks)
    config = EngineConfig(
        vocab=checkpoint.spec.vocab,
        max_context=executor.max_context,
        max_sequences=settings.max_sequences,
        max_batched_tokens=batched_tokens(settings.device, settings.max_batched_tokens, settings.max_sequences),
        max_rows=executor.max_rows,
        blocks=executor.blocks,
        max_waiting=settings.queue_limit,
        max_admissions=settings.max_prefill_batch,
        eos_ids=checkpoint.spec.eos_ids,
        prefix_cache=settings.prefix_cache,
        overlap=executor.overlap,
        step_weight_bytes=executor.step_weight_bytes,
        bytes_per_block=executor.bytes_per_block,
    )
    engine = Engine(executor, config, _schema_compiler(settings, config))
    ready = EngineReady(
        pid=os.getpid(),
        model=settings.model_name,
        family=checkpoint.spec.family,
        vocab=config.vocab,
        max_context=config.longest,
        max_sequences=config.max_sequences,
        max_waiting=config.max_waiting,
        blocks=config.blocks,
        weight_bytes=executor.weight_bytes,
        kv_bytes=executor.blocks * executor.bytes_per_block,
        step_weight_bytes=executor.step_weight_bytes,
        context=context,
    )
    stop = threading.Event()
    threading.Thread(target=_listen, args=(control, stop), daemon=True).start()
    if settings.warmup:
        _warm_up(executor, config, settings, control, stop)
    meter = None
    if settings.device == "cpu":  # the floor of another device is not this machine's memory
        meter = FloorMeter(Path(settings.cache_dir), settings.threads or usable_threads())
    with EngineSocket(Path(settings.run_dir), ready) as socket:
        control.send("ready", **msgspec.structs.asdict(ready))
        followers = None
        if ranks is not None:
            followers = _Followers(executor, ranks, peer_limit(settings))
        gc.freeze()  # what is loaded stays, and need not be walked over between two steps
        try:
            _loop(engine, socket, _Pulse(control, meter), stop, followers)
        except ConnectionError as error:  # another rank
            socket.fail(str(error))
            raise OarlockError(str(error)) from error
        except Exception as error:
            socket.fail(f"{type(error).__name__}: {error}")
            raise


def _schema_compiler(settings: Settings, config: EngineConfig) -> Callable[[str], TokenFilter]:
    """Makes the filters of JSON schemas; its tables are made beside the first steps, so that no start waits."""

    def load() -> "Grammars":
        from oarlock_runtime.engine.grammar import Grammars

        tokenizer = (dummy_tokenizer if settings.load_format == "dummy" else load_tokenizer)(settings.model)
        return Grammars(tokenizer, config.vocab, list(dict.fromkeys(config.eos_ids + tokenizer.eos_ids)))

    loading = ThreadPoolExecutor(1, "grammars").submit(load)

    def compile_schema(schema: str) -> TokenFilter:
        try:
            return loading.result(GRAMMARS_SECONDS).matcher(schema)
        except RequestError:
            raise
        except (OarlockError, TimeoutError) as error:
            reason = str(error) or f"the vocabulary's tables were not ready within {GRAMMARS_SECONDS:g} s"
            raise RequestError("response_format", f"JSON schemas can't be used with this model: {reason}") from error

    return compile_schema


def _warm_up(
    executor: CoreExecutor, config: EngineConfig, settings: Settings, control: Control, stop: threading.Event
) -> None:
    def go_on(share: float) -> bool:
        control.send("loading", what="warming up", share=share)
        return not stop.is_set()

    begin = time.monotonic()
    output = settings.max_output_tokens or config.longest
    prefills = min(config.max_admissions, config.max_sequences)
    warm_up(executor, config, output=output, prefills=prefills, go_on=go_on)
    control.send("loading", what="warming up", share=1.0)
    _log.info("warmed up in %.1f s", time.monotonic() - begin)


def _listen(control: Control, stop: threading.Event) -> None:
    """Sets `stop` when the supervisor says so."""
    while (message := control.receive()) is not None:
        if message["kind"] == "drain":  # from now on servers leave because they are told to
            logging.getLogger("oarlock_runtime.ipc.sockets").setLevel(logging.ERROR)
        if message["kind"] == "stop":
            break
    stop.set()


def _loop(
    engine: Engine,
    socket: EngineSocket,
    pulse: "_Pulse",
    stop: threading.Event,
    followers: "_Followers | None" = None,
) -> None:
    names = _Names(engine)
    while not stop.is_set():
        for message in socket.receive(0 if engine.has_work else IDLE_SECONDS):
            if isinstance(message, AbortRequests):
                engine.abort(message.request_ids)
            else:
                _add(engine, socket, names, message)
        output = engine.step()
        if output is not None:
            socket.send(output)
        if followers is not None:
            followers.beat(engine.stats().steps_total)
        socket.beat(engine.stats)
        pulse.beat(engine)
    socket.send(engine.abort_all())
    if followers is not None:
        followers.stop()


class _Followers:
    """The other ranks of a split model: every step proves that they are there, and where there is none, a beat."""

    def __init__(self, executor: CoreExecutor, ranks: Ranks, silence: float) -> None:
        self._executor = executor
        self._steps = -1
        self._last = time.monotonic()
        executor.beat()  # they may have been ready before us; from now on we are prompt
        ranks.comm.set_time_limit(silence)

    def beat(self, steps: int) -> None:
        """ConnectionError when one is lost. `steps`: how many there have been."""
        now = time.monotonic()
        if steps != self._steps:
            self._steps, self._last = steps, now
        elif now - self._last >= FOLLOWER_BEAT_SECONDS:
            self._last = now
            self._executor.beat()

    def stop(self) -> None:
        with contextlib.suppress(ConnectionError):  # they may have been told themselves
            self._executor.stop_followers()


def _add(engine: Engine, socket: EngineSocket, names: "_Names", message: AddRequest) -> None:
    try:
        names.check(message.name)
        engine.add(request_of(message))
        names.take(message.name, message.request_id)
    except RequestError as error:
        socket.reject(message.request_id, error)
    else:
        socket.accept([message.request_id])


class _Names:
    """Which request bears each name that a client has chosen; a name is free again when its request has ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bearers: dict[str, int] = {}
        self._forget_at = 1024

    def check(self, name: str) -> None:
        """RequestError when a request of this name waits or runs."""
        if name in self._bearers and self._engine.holds(self._bearers[name]):
            raise RequestError("name", f"the name {name!r} is in use", 409, NAME_IN_USE)

    def take(self, name: str, request_id: int) -> None:
        if not name:
            return
        self._bearers[name] = request_id
        if len(self._bearers) >= self._forget_at:
            self._bearers = {name: bearer for name, bearer in self._bearers.items() if self._engine.holds(bearer)}
            self._forget_at = max(1024, 2 * len(self._bearers))


class _Pulse:
    """Tells the supervisor twice a second that the loop goes round, with the engine's counters."""

    def __init__(self, control: Control, meter: FloorMeter | None) -> None:
        self._control = control
        self._meter = meter
        self._last = 0.0

    def beat(self, engine: Engine) -> None:
        now = time.monotonic()
        if now - self._last >= BEAT_SECONDS:
            self._last = now
            stats = engine.stats()
            ratio = 0.0 if self._meter is None else self._meter.ratio(stats)
            told = {**msgspec.structs.asdict(stats), "floor_ratio": ratio}
            self._control.send("beat", stats=told)


if __name__ == "__main__":
    run(main)
