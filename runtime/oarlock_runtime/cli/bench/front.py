"""`oarlock bench front`: what a streamed token costs the server process, without a model.

A real server process streams to clients of the bench what an engine on a clock draws: all streams get a token each
step, as they do from a model. What is counted is the CPU time of the server process, all its threads, between the first
step in which every stream runs and the last; requests and their prompts are left out.
"""

import asyncio
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime.cli.arguments import Parser, integer, integers, number
from oarlock_runtime.cli.bench.client import Endpoint, Trace
from oarlock_runtime.cli.bench.dialects import DIALECTS
from oarlock_runtime.cli.bench.report import write_json
from oarlock_runtime.cli.bench.workload import Ask
from oarlock_runtime.cli.terminal import say, table
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.hostbench import VOCAB, NullExecutor
from oarlock_runtime.errors import OarlockError
from oarlock_runtime.ipc.messages import AbortRequests, EngineReady
from oarlock_runtime.ipc.sockets import IDLE_SECONDS, EngineSocket, request_of
from oarlock_runtime.server.child import Child
from oarlock_runtime.settings import Settings

GOAL_US = 20.0  # of one core, a token
PROMPT = list(range(1000, 1016))
ROOM = 64  # tokens of an answer that may go by before every stream runs, and after the first has ended
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FrontCost:
    """Microseconds of CPU that the server process spends on a token, and the share of a core that it was busy."""

    streams: int
    step_ms: float
    tokens: int
    microseconds: float
    busy: float


class _ClockedEngine(threading.Thread):
    """The engine process's loop, with a step every `seconds`."""

    def __init__(self, run_dir: Path, streams: int, tokens: int, seconds: float) -> None:
        super().__init__(daemon=True)
        config = EngineConfig(
            vocab=VOCAB,
            max_context=len(PROMPT) + tokens + 2 * ROOM,
            max_sequences=streams,
            max_batched_tokens=8192,
            max_rows=8192,
            blocks=streams * (4 + (tokens + 2 * ROOM) // 64),
            max_waiting=streams,
        )
        self._engine = Engine(NullExecutor(config.max_rows), config)
        ready = EngineReady(
            pid=os.getpid(),
            model="bench",
            family="",
            vocab=VOCAB,
            max_context=config.longest,
            max_sequences=streams,
            max_waiting=streams,
            blocks=config.blocks,
            weight_bytes=0,
            kv_bytes=0,
            step_weight_bytes=0,
            context=config.longest,
        )
        self._socket = EngineSocket(run_dir, ready)
        self._streams, self._tokens, self._seconds = streams, tokens, seconds
        self._ended = threading.Event()
        self.server_pid = 0
        self.marks: list[tuple[float, int, float]] = []  # (time, tokens sent, CPU seconds of the server)

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self._socket.close()

    def run(self) -> None:
        engine, channel = self._engine, self._socket
        due = time.monotonic()
        while not self._ended.is_set():
            for message in channel.receive(0 if engine.has_work else IDLE_SECONDS / 10):
                if isinstance(message, AbortRequests):
                    engine.abort(message.request_ids)
                else:
                    engine.add(request_of(message))
                    channel.accept([message.request_id])
            output = engine.step()
            if output is not None:
                channel.send(output)
                due = max(due + self._seconds, time.monotonic())
                time.sleep(due - time.monotonic() if due > time.monotonic() else 0)
                self._mark()
            channel.beat(engine.stats)

    def _mark(self) -> None:
        stats = self._engine.stats()
        begun = stats.running == self._streams and stats.generation_tokens_total >= self._streams * ROOM
        done = stats.generation_tokens_total >= self._streams * (ROOM + self._tokens)
        if (begun and not self.marks) or (done and len(self.marks) == 1):
            self.marks.append((time.monotonic(), stats.generation_tokens_total, cpu_seconds(self.server_pid)))


def cpu_seconds(pid: int) -> float:
    """CPU time that the threads of a process have taken."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener


async def measure(streams: int, tokens: int, step_ms: float) -> FrontCost:
    """Streams `tokens` tokens to each of `streams` clients, one every `step_ms`."""
    with tempfile.TemporaryDirectory(prefix="oarlock-") as scratch, _listener() as listener:
        os.chmod(scratch, 0o700)
        flags = ["--model", "smollm2-135m", "--load-format", "dummy", "--run-dir", scratch, "--grpc-port", "off"]
        settings = Settings.load(flags, {})
        engine = _ClockedEngine(Path(scratch), streams, tokens, step_ms / 1e3)
        opened = asyncio.Event()
        server = Child(
            "server",
            "oarlock_runtime.server.server_process",
            {"settings": settings.to_json(), "name": "server", "listener": listener.fileno()},
            on_message=lambda child, message: opened.set() if child.ready else None,
            on_line=lambda child, line: say(f"{child.name}: {line}"),
            environ=dict(os.environ),
            inherited=(listener.fileno(),),
        )
        engine.server_pid = server.pid
        engine.start()
        try:
            await asyncio.wait_for(opened.wait(), START_SECONDS)
            endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")
            ask = Ask(PROMPT, ROOM + tokens + ROOM)
            body = DIALECTS["openai"].body(ask, "default", PROMPT, {})
            traces = await asyncio.gather(*(endpoint.complete(body) for _ in range(streams)))
        finally:
            engine.stop()
            server.kill()
            server.reaped(os.waitpid(server.pid, 0)[1])
        _check(traces, ask.output)
        (begin, sent, cpu), (end, sent_last, cpu_last) = engine.marks
        count = sent_last - sent
        return FrontCost(streams, step_ms, count, (cpu_last - cpu) / count * 1e6, (cpu_last - cpu) / (end - begin))


def _check(traces: list[Trace], tokens: int) -> None:
    for trace in traces:
        if trace.error or trace.output_tokens != tokens:
            raise OarlockError(trace.error or f"a stream had {trace.output_tokens} tokens instead of {tokens}")


def run(arguments: list[str]) -> int:
    flags = Parser("bench front", "Measures what a streamed token costs the server process, in us of one core.")
    flags.add_argument("--streams", type=integers(1, 4096), default=[1, 64, 256], help="default 1,64,256")
    flags.add_argument("--tokens", type=integer(1, 100000), default=300, help="measured of each stream (default 300)")
    flags.add_argument("--step", type=number(0), default=5.0, help="ms of a step (default 5), and …")
    flags.add_argument("--row", type=number(0), default=0.04, help="… ms more for each stream (default 0.04)")
    flags.add_argument("--json", default="", metavar="FILE", help="write settings and figures to a file")
    values = flags.read(arguments[1:])
    costs = [asyncio.run(measure(count, values.tokens, values.step + values.row * count)) for count in values.streams]
    rows = [
        [f"{cost.streams}", f"{cost.step_ms:.1f}", f"{cost.microseconds:.1f}", f"{cost.busy:.0%}"] for cost in costs
    ]
    table(f"CPU of the server process, goal {GOAL_US:g} us a token", ["streams", "step ms", "us a token", "busy"], rows)
    if values.json:
        write_json(values.json, vars(values), [{name: getattr(c, name) for name in c.__slots__} for c in costs])
    return 0
