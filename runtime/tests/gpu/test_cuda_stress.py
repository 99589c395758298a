"""A crowded engine on a GPU: few blocks, preemption, and delays of host and device at random, yet the same tokens.

`make gpu-test` runs these on a machine with a GPU; elsewhere they are skipped.
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cuda import SMALL, generate, needs_cuda, small_engine, tiny
from support.gpu_kernels import StreamKernels

from oarlock_runtime.engine import kv_cache
from oarlock_runtime.engine.executor import CoreExecutor, load_executor
from oarlock_runtime.engine.plan import StepPlan, StepResult
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import SamplingParams

pytestmark = needs_cuda


class Jittery:
    """An executor whose host and device are late at random."""

    def __init__(self, executor: CoreExecutor, kernels: StreamKernels, seed: int) -> None:
        self._executor, self._kernels, self._dice = executor, kernels, np.random.default_rng(seed)

    def submit(self, plan: StepPlan) -> None:
        time.sleep(self._dice.choice([0, 0, 0.003]))
        self._kernels.delay(self._dice.choice([0, 0.0001, 0.001]))
        self._executor.submit(plan)
        self._kernels.delay(self._dice.choice([0, 0.0001, 0.001]))

    def collect(self) -> StepResult:
        time.sleep(self._dice.choice([0, 0, 0.003]))
        return self._executor.collect()


def generate_late(
    executor: CoreExecutor,
    requests: list[Request],
    blocks: int,
    overlap: bool = False,
    seed: int = 0,
    graphs: bool = True,
) -> dict[int, list[int]]:
    """The tokens of each request; with a seed, host and device are late at random."""
    kernels = StreamKernels(executor.stream)
    late = Jittery(executor, kernels, seed) if seed else executor
    engine = small_engine(late, executor.max_rows, blocks, overlap)
    with kernels.jitter(seed, between=not graphs) if seed else nullcontext():
        found = generate(engine, requests)
    assert engine.stats().preemptions_total > 0 or blocks > 16
    return found


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_crowded_engine_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """With few blocks and preemption, graphs or none, steps that overlap or not, delays wherever they fall: the same
    tokens, and those of ample blocks."""
    monkeypatch.setattr(kv_cache, "ROOM_BLOCKS", 0)
    checkpoint = tiny(tmp_path)
    random = np.random.default_rng(seed)
    requests = [
        Request(
            number,
            random.integers(0, 256, int(random.integers(1, 200))).astype(np.int32),
            SamplingParams(
                max_tokens=int(random.integers(20, 150)),
                temperature=float(random.choice([0, 0.8])),
                seed=number,
                repetition_penalty=float(random.choice([1, 1, 1, 1.2])),
                ignore_eos=True,
            ),
        )
        for number in range(12)
    ]
    expected = generate_late(load_executor(checkpoint, replace(SMALL, graphs=False)), requests, 12)
    assert all(len(expected[request.request_id]) == request.sampling.max_tokens for request in requests)
    for graphs in (True, False):
        executor = load_executor(checkpoint, replace(SMALL, graphs=graphs))
        for overlap in (True, False):
            assert generate_late(executor, requests, 12, overlap, seed, graphs) == expected
    for overlap in (True, False):
        ample = load_executor(checkpoint, replace(SMALL, kv_blocks=64))
        assert generate_late(ample, requests, 64, overlap, seed if overlap else 0) == expected
