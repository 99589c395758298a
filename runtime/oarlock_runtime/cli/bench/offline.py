"""`oarlock bench --model …`: the same load as over HTTP, on an engine in this process: what serving costs beside it."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oarlock_runtime.cli.bench import report
from oarlock_runtime.cli.bench.client import Trace
from oarlock_runtime.cli.bench.inprocess import checkpoint_of, load
from oarlock_runtime.cli.bench.load import Load, arrivals_of, loads_of
from oarlock_runtime.cli.bench.workload import LONGEST_SPREAD, Ask, draw, workload_of
from oarlock_runtime.cli.dispatch import UsageError
from oarlock_runtime.cli.terminal import progress
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.executor import batched_tokens
from oarlock_runtime.engine.request import Finish, Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.loading import Quantization


@dataclass
class Run:
    """Requests on their way through an engine. Arrival times are seconds from the run's start."""

    engine: Engine
    asks: Sequence[Ask]
    arrivals: Sequence[float]  # empty: closed load
    concurrency: int
    first_id: int  # of the requests in this engine
    traces: list[Trace] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    running: int = 0

    def offer(self, now: float) -> None:
        """Adds the requests that are due."""
        while len(self.started) < len(self.asks):
            index = len(self.started)
            due = self.arrivals[index] if self.arrivals else now
            if due > now or (not self.arrivals and self.running >= self.concurrency):
                return
            ask = self.asks[index]
            sampling = SamplingParams(max_tokens=ask.output, temperature=0.0, ignore_eos=True)
            self.engine.add(Request(self.first_id + index, np.array(ask.prompt, np.int32), sampling))
            self.started.append(due)
            self.traces.append(Trace(prompt_tokens=len(ask.prompt)))
            self.running += 1

    def go(self) -> float:
        """Runs to the end; returns the seconds it took."""
        start = time.perf_counter()
        while True:
            self.offer(time.perf_counter() - start)
            output = self.engine.step()
            now = time.perf_counter() - start
            if output is None:
                if len(self.started) == len(self.asks):
                    return now
                time.sleep(max(0.0, self.arrivals[len(self.started)] - now))
                continue
            for request_id, token, finish in zip(
                output.request_ids.tolist(), output.token_ids.tolist(), output.finish.tolist(), strict=True
            ):
                index = request_id - self.first_id
                trace = self.traces[index]
                if token >= 0:
                    trace.output_tokens += 1
                    trace.total = now - self.started[index]
                    trace.first = trace.first or trace.total
                if finish != Finish.RUNNING:
                    self.running -= 1
                    trace.error = "" if finish in (Finish.STOP, Finish.LENGTH) else f"ended with {Finish(finish).name}"


def measure_model(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every load on the model of --model; results in the shape that serving.show takes."""
    checkpoint = checkpoint_of(flags.model, flags.load_format)
    workload = workload_of(flags)
    longest = workload.prefix + (workload.input + workload.output) * (LONGEST_SPREAD if workload.spread else 1)
    if longest > checkpoint.spec.max_context:
        raise UsageError(f"{longest} tokens are more than the model's context of {checkpoint.spec.max_context}")
    if workload.last_id >= checkpoint.spec.vocab:
        raise UsageError(f"--last-id {workload.last_id}: the model has {checkpoint.spec.vocab} tokens")
    return [
        result
        for quantization in flags.quantization
        for result in measure_quantization(flags, checkpoint, quantization, longest)
    ]


def measure_quantization(
    flags: argparse.Namespace, checkpoint: Checkpoint, quantization: Quantization, longest: int
) -> list[dict[str, Any]]:
    """Every load on one loaded model; sequences have up to `longest` tokens."""
    workload, loads = workload_of(flags), loads_of(flags)
    engine = make_engine(flags, checkpoint, quantization, loads, longest)
    seed = flags.seed or str(time.time_ns())
    results: list[dict[str, Any]] = []
    next_id = 0
    with progress(f"bench {quantization}") as shown:
        for offered, count in loads:
            runs = []
            for repeat in range(flags.repeats):
                key = f"{seed} {offered.describe()} {repeat}"
                for asks in (draw(workload, flags.warmup, f"warm {key}"), draw(workload, count, key)):
                    run = Run(engine, asks, arrivals_of(offered, len(asks), key), max(1, offered.concurrency), next_id)
                    next_id += len(asks)
                    seconds = run.go()
                runs.append(report.figures(run.traces, seconds, sum(ask.output for ask in asks)))
                shown.update(len(results) * flags.repeats + len(runs), len(loads) * flags.repeats)
            results.append(
                {"server": f"in process, {quantization}", "model": flags.model, "load": offered, "runs": runs}
            )
    return results


def make_engine(
    flags: argparse.Namespace,
    checkpoint: Checkpoint,
    quantization: Quantization,
    loads: Sequence[tuple[Load, int]],
    longest: int,
) -> Engine:
    """An engine with a KV pool in which every load fits without preemption."""
    sequences = max(count if offered.rate else offered.concurrency for offered, count in loads)
    step_tokens = batched_tokens(flags.device, 0, sequences)  # as `oarlock serve` has it
    executor = load(checkpoint, flags, quantization, sequences=sequences, context=longest, step_tokens=step_tokens)
    config = EngineConfig(
        vocab=checkpoint.spec.vocab,
        max_context=longest,
        max_sequences=sequences,
        max_batched_tokens=step_tokens,
        max_rows=executor.max_rows,
        blocks=executor.blocks,
        max_waiting=max(flags.warmup, *(count for _, count in loads)),
        eos_ids=checkpoint.spec.eos_ids,
        overlap=executor.overlap,
    )
    return Engine(executor, config)
