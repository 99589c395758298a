"""What the engine costs the host in each step, without a model: `oarlock bench host`.

Sequences of mixed lengths decode on an executor that answers at once; the time of schedule, plan building and commit is
compared with the budget of 150 µs and 0.5 µs a running sequence.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.plan import StepPlan, StepResult
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import MAX_TOP_LOGPROBS, SamplingParams

BUDGET_FIXED, BUDGET_PER_SEQUENCE = 150.0, 0.5  # microseconds
LONGEST_PROMPT = 1024
VOCAB = 32_000


@dataclass(frozen=True, slots=True)
class HostCost:
    """Microseconds of host work in a step of `sequences` decoding sequences."""

    sequences: int
    median: float
    mean: float  # with the steps in which many blocks fill
    p99: float

    @property
    def budget(self) -> float:
        return BUDGET_FIXED + BUDGET_PER_SEQUENCE * self.sequences


class NullExecutor:
    """Draws the same tokens each step, in no time."""

    def __init__(self, rows: int) -> None:
        tokens = np.random.default_rng(0).integers(0, VOCAB, rows).astype(np.int32)
        self._buffers = StepResult(
            token=tokens,
            logprob=np.zeros(rows, np.float32),
            top_ids=np.zeros((rows, MAX_TOP_LOGPROBS), np.int32),
            top_logprobs=np.zeros((rows, MAX_TOP_LOGPROBS), np.float32),
            status=np.zeros(rows, np.int32),
        )
        self._rows = 0

    def submit(self, plan: StepPlan) -> None:
        self._rows = len(plan.sample_rows)

    def collect(self) -> StepResult:
        b, rows = self._buffers, self._rows
        return StepResult(b.token[:rows], b.logprob[:rows], b.top_ids[:rows], b.top_logprobs[:rows], b.status[:rows])


def measure(sequences: int, steps: int, sampling: SamplingParams | None = None) -> HostCost:
    """Steady decode of `sequences` sequences, all with `sampling` (default: drawn, no penalties)."""
    sampling = sampling or SamplingParams()
    limit = LONGEST_PROMPT + steps + LONGEST_PROMPT
    config = EngineConfig(
        vocab=VOCAB,
        max_context=limit,
        max_sequences=sequences,
        max_batched_tokens=max(8192, sequences),
        max_rows=max(8192, sequences),
        blocks=sequences * -(-limit // 64),
        max_waiting=sequences,
        eos_ids=(VOCAB - 1,),
    )
    engine = Engine(NullExecutor(config.max_rows), config)
    random = np.random.default_rng(sequences)
    sampling = msgspec.structs.replace(sampling, max_tokens=limit, ignore_eos=True)
    for request_id, length in enumerate(random.integers(LONGEST_PROMPT // 2, LONGEST_PROMPT, sequences).tolist()):
        engine.add(Request(request_id, random.integers(0, VOCAB, length).astype(np.int32), sampling))
    while engine.stats().running < sequences or engine.stats().generation_tokens_total < 2 * sequences:
        engine.step()
    costs = []
    for _ in range(steps):
        begin = time.perf_counter()
        engine.step()
        costs.append((time.perf_counter() - begin) * 1e6)
    return HostCost(sequences, statistics.median(costs), statistics.fmean(costs), float(np.percentile(costs, 99)))


def run(
    counts: Sequence[int] = (1, 64, 1024), steps: int = 500, show: Callable[[str], None] | None = print
) -> list[HostCost]:
    """Measures and shows one line for each count of sequences."""
    costs = [measure(count, steps) for count in counts]
    if show:
        show(f"{'sequences':>9} {'median us':>10} {'mean us':>10} {'p99 us':>10} {'budget us':>10}")
        for cost in costs:
            show(f"{cost.sequences:9} {cost.median:10.1f} {cost.mean:10.1f} {cost.p99:10.1f} {cost.budget:10.1f}")
    return costs
