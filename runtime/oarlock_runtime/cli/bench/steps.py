"""`oarlock bench decode` and `oarlock bench prefill`: the time of one step of the core, in process, beside its floor.

Steps are built by hand and go straight to the executor, so that the figures are the model's alone, without scheduler,
tokenizer or network.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from oarlock_runtime import _C
from oarlock_runtime.cli.arguments import MODEL_HELP, Parser, integer, integers, number
from oarlock_runtime.cli.bench.execution import execution_flags
from oarlock_runtime.cli.bench.floor import prefill_operations
from oarlock_runtime.cli.bench.inprocess import checkpoint_of, load
from oarlock_runtime.cli.bench.report import write_json
from oarlock_runtime.cli.terminal import say, table
from oarlock_runtime.engine.executor import CoreExecutor, usable_threads
from oarlock_runtime.engine.plan import BLOCK_TOKENS, StepPlan
from oarlock_runtime.models.checkpoint import Checkpoint

BANDWIDTH_SECONDS = RATE_SECONDS = 0.5


def step_plan(vocab: int, sequences: int, new_tokens: int, context: int) -> StepPlan:
    """A greedy step: of each of `sequences` sequences the last `new_tokens` of `context` tokens, last rows sampled."""
    per_sequence = -(-context // BLOCK_TOKENS)
    tables = np.arange(sequences * per_sequence, dtype=np.int32).reshape(sequences, per_sequence)
    positions = np.tile(np.arange(context - new_tokens, context, dtype=np.int32), sequences)
    owners = np.repeat(np.arange(sequences), new_tokens)
    slots = tables[owners, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    starts = np.arange(sequences + 1, dtype=np.int32) * np.int32(new_tokens)
    ones, zeros = np.ones(sequences, np.float32), np.zeros(sequences, np.float32)
    return StepPlan(
        token_ids=np.random.default_rng(0).integers(0, vocab, len(positions)).astype(np.int32),
        positions=positions,
        slots=slots.astype(np.int32),
        query_starts=starts,
        context_lens=np.full(sequences, context, np.int32),
        block_tables=tables,
        sample_rows=starts[1:] - np.int32(1),
        temperature=zeros,
        top_p=ones,
        min_p=zeros,
        top_k=np.zeros(sequences, np.int32),
        seed=np.zeros(sequences, np.uint64),
        draw=np.zeros(sequences, np.int32),
    )


def time_steps(executor: CoreExecutor, plan: StepPlan, repeats: int) -> list[float]:
    """Seconds of each of `repeats` steps, after two that are not counted."""
    each_step(executor, plan, 2)
    return each_step(executor, plan, repeats)


def each_step(executor: CoreExecutor, plan: StepPlan, repeats: int) -> list[float]:
    """Seconds of each of `repeats` steps."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        executor.submit(plan)
        executor.collect()
        seconds.append(time.perf_counter() - begin)
    return seconds


def each_overlapped_step(executor: CoreExecutor, plan: StepPlan, repeats: int) -> list[float]:
    """Seconds from result to result of `repeats` steps, each submitted while the one before it runs, as an engine does
    where its executor overlaps them."""
    if not executor.overlap:
        return each_step(executor, plan, repeats)
    executor.submit(plan)
    ends = [time.perf_counter()]
    for _ in range(repeats):
        executor.submit(plan)
        executor.collect()
        ends.append(time.perf_counter())
    executor.collect()
    return [after - before for before, after in pairwise(ends)]


@dataclass(frozen=True)
class DecodeFigures:
    """A decode step at a batch: median seconds, and the seconds in which memory delivers what the step reads."""

    quantization: str
    batch: int
    context: int
    step: float
    floor: float

    @property
    def share(self) -> float:
        return self.floor / self.step


def measure_decode(
    executor: CoreExecutor,
    vocab: int,
    quantization: str,
    batch: int,
    context: int,
    steps: int,
    bandwidth: float = 0,
) -> DecodeFigures:
    """Decode steps, from result to result, with the read bandwidth measured before and after: it drifts with the
    machine's neighbours."""
    threads = usable_threads()
    before = bandwidth or _C.read_bandwidth(threads, BANDWIDTH_SECONDS)
    plan = step_plan(vocab, batch, 1, context)
    each_step(executor, plan, 2)
    step = statistics.median(each_overlapped_step(executor, plan, steps))
    bandwidth = bandwidth or max(before, _C.read_bandwidth(threads, BANDWIDTH_SECONDS))
    read = executor.step_weight_bytes + batch * context * executor.bytes_per_block / BLOCK_TOKENS
    return DecodeFigures(quantization, batch, context, step, read / bandwidth)


@dataclass(frozen=True)
class PrefillFigures:
    """A prompt in one step: median seconds, and the operations a second that makes."""

    quantization: str
    tokens: int
    seconds: float
    operations: float
    rate_limit: float  # operations a second of the best bf16 unit

    @property
    def share(self) -> float:
        return self.operations / self.seconds / self.rate_limit


def measure_prefill(
    executor: CoreExecutor, checkpoint: Checkpoint, quantization: str, tokens: int, repeats: int, limit: float = 0
) -> PrefillFigures:
    """A prompt of `tokens` tokens; the rate that it is compared with is bf16's, whatever the weights are held in."""
    given = limit
    limit = given or _C.matrix_rate("bf16", usable_threads(), RATE_SECONDS)
    plan = step_plan(checkpoint.spec.vocab, 1, tokens, tokens)
    seconds = statistics.median(time_steps(executor, plan, repeats))
    limit = given or max(limit, _C.matrix_rate("bf16", usable_threads(), RATE_SECONDS))
    return PrefillFigures(quantization, tokens, seconds, prefill_operations(checkpoint.spec, tokens), limit)


def decode_rows(measured: Sequence[DecodeFigures]) -> list[list[str]]:
    return [
        [
            figures.quantization,
            f"{figures.batch}",
            f"{figures.context}",
            f"{1000 * figures.step:.2f}",
            f"{1000 * figures.floor:.2f}",
            f"{figures.share:.0%}",
            f"{figures.batch / figures.step:.1f}",
        ]
        for figures in measured
    ]


def prefill_rows(measured: Sequence[PrefillFigures]) -> list[list[str]]:
    return [
        [
            figures.quantization,
            f"{figures.tokens}",
            f"{1000 * figures.seconds:.1f}",
            f"{figures.tokens / figures.seconds:.0f}",
            f"{figures.operations / figures.seconds / 1e12:.3f}",
            f"{figures.rate_limit / 1e12:.3f}",
            f"{figures.share:.0%}",
        ]
        for figures in measured
    ]


DECODE_COLUMNS = ("quantization", "batch", "context", "step ms", "floor ms", "floor/step", "tok/s")
PREFILL_COLUMNS = ("quantization", "tokens", "ms", "tok/s", "TFLOP/s", "bf16 rate", "share")


def run_decode(flags: argparse.Namespace, checkpoint: Checkpoint) -> list[DecodeFigures]:
    """Every batch under every quantization; prints nothing."""
    measured = []
    for quantization in flags.quantization:
        largest = max(flags.batch)
        executor = load(checkpoint, flags, quantization, sequences=largest, context=flags.context, step_tokens=largest)
        for batch in flags.batch:
            measured.append(
                measure_decode(
                    executor,
                    checkpoint.spec.vocab,
                    quantization,
                    batch,
                    flags.context,
                    flags.steps,
                    flags.bandwidth * 1e9,
                )
            )
    return measured


def run_prefill(flags: argparse.Namespace, checkpoint: Checkpoint) -> list[PrefillFigures]:
    """Every length under every quantization; prints nothing."""
    measured = []
    for quantization in flags.quantization:
        longest = max(flags.tokens)
        executor = load(checkpoint, flags, quantization, sequences=1, context=longest, step_tokens=longest)
        for tokens in flags.tokens:
            measured.append(
                measure_prefill(executor, checkpoint, quantization, tokens, flags.repeats, flags.rate * 1e12)
            )
    return measured


def parser(name: str) -> Parser:
    about = {
        "decode": "Times decode steps of the core in process, beside the time memory needs for what they read.",
        "prefill": "Times prompts of the core in process, beside the machine's bf16 rate.",
    }
    flags = Parser(f"bench {name}", about[name])
    flags.add_argument("--model", required=True, help=MODEL_HELP)
    execution_flags(flags)
    if name == "decode":
        flags.add_argument("--batch", type=integers(1, 4096), default=[1, 8, 32], help="sequences (default 1,8,32)")
        flags.add_argument("--context", type=integer(1), default=256, help="tokens of each sequence (default 256)")
        flags.add_argument(
            "--bandwidth", type=number(0), default=0.0, help="read GB/s of a GPU, for the floor; a CPU's is measured"
        )
        flags.add_argument("--steps", type=integer(1, 9999), default=41, help="timed steps (default 41)")
    else:
        flags.add_argument("--tokens", type=integers(1), default=[128, 1024], help="lengths (default 128,1024)")
        flags.add_argument("--rate", type=number(0), default=0.0, help="bf16 TFLOP/s of a GPU; a CPU's is measured")
        flags.add_argument("--repeats", type=integer(1, 999), default=7, help="timed steps (default 7)")
    flags.add_argument("--json", default="", metavar="FILE", help="write the figures to a file")
    return flags


def run(arguments: list[str]) -> int:
    name = arguments[0]
    flags = parser(name).read(arguments[1:])
    checkpoint = checkpoint_of(flags.model, flags.load_format)
    say(f"{usable_threads()} cores, {_C.isa()}")
    plain: list[dict[str, Any]]
    if name == "decode":
        decoded = run_decode(flags, checkpoint)
        table(
            "Decode, one step of the core; floor = bytes read / measured bandwidth",
            DECODE_COLUMNS,
            decode_rows(decoded),
        )
        plain = [vars_of(figures) for figures in decoded]
    else:
        filled = run_prefill(flags, checkpoint)
        table("Prefill, one step of the core", PREFILL_COLUMNS, prefill_rows(filled))
        plain = [vars_of(figures) for figures in filled]
    if flags.json:
        write_json(flags.json, vars(flags), plain)
    return 0


def vars_of(figures: DecodeFigures | PrefillFigures) -> dict[str, Any]:
    return {**vars(figures), "share": figures.share}
