"""The engine process's loop around a toy executor, as a thread and as a process of its own."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.toy_executor import ToyExecutor

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.messages import AbortRequests, EngineReady
from oarlock_runtime.ipc.sockets import EngineSocket, request_of

VOCAB, BLOCKS = 61, 32
CONFIG = EngineConfig(
    vocab=VOCAB, max_context=512, max_sequences=4, max_batched_tokens=64, max_rows=64, blocks=BLOCKS, max_waiting=2
)
READY = EngineReady(
    pid=1,
    model="toy",
    family="toy",
    vocab=VOCAB,
    max_context=512,
    max_sequences=4,
    max_waiting=2,
    blocks=BLOCKS,
    weight_bytes=0,
    kv_bytes=0,
    context=512,
    step_weight_bytes=0,
)
PATIENCE = 20.0  # seconds; nothing here should come near it


class EngineThread:
    """The engine process's loop, as a thread. `before_step` may hold it up."""

    def __init__(self, run_dir: Path) -> None:
        self.engine = Engine(ToyExecutor(VOCAB, BLOCKS), CONFIG)
        self.socket = EngineSocket(run_dir, READY)
        self.before_step: Callable[[], None] = lambda: None
        self.turns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.socket.close()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.turns += 1
            serve_once(self.engine, self.socket, 0 if self.engine.has_work else 0.05)
            self.before_step()


def serve_once(engine: Engine, socket: EngineSocket, timeout: float) -> None:
    for message in socket.receive(timeout):
        if isinstance(message, AbortRequests):
            engine.abort(message.request_ids)
            continue
        try:
            engine.add(request_of(message))
            socket.accept([message.request_id])
        except RequestError as error:
            socket.reject(message.request_id, error)
    output = engine.step()
    if output is not None:
        socket.send(output)
    socket.beat(engine.stats)


def engine_process(run_dir: str, failing: bool) -> None:
    engine = Engine(ToyExecutor(VOCAB, BLOCKS), CONFIG)
    with EngineSocket(Path(run_dir), READY) as socket:
        while not (failing and engine.stats().generation_tokens_total > 3):
            serve_once(engine, socket, 0.05)
            time.sleep(0.002)
        socket.fail("the model melted")
