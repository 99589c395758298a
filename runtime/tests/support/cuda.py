"""What the tests of the CUDA executor have in common."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny import tiny_checkpoint

from oarlock_runtime import _C
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions
from oarlock_runtime.engine.plan import Executor, StepPlan, StepResult
from oarlock_runtime.engine.request import Request
from oarlock_runtime.models.checkpoint import Checkpoint

needs_cuda = pytest.mark.skipif("cuda" not in _C.devices(), reason="this build has no device cuda")

CUDA = ExecutorOptions(device="cuda", max_sequences=64, max_context=512, max_batched_tokens=512, kv_blocks=512)
# Few sequences, so that few blocks make them crowd.
SMALL = replace(CUDA, max_context=448, max_sequences=8, max_batched_tokens=96, kv_blocks=12, batch_invariant=True)


def tiny(folder: Path, family: str = "qwen3") -> Checkpoint:
    return tiny_checkpoint(folder, family, head_dim=64)


def run(executor: CoreExecutor, plan: StepPlan) -> StepResult:
    """A step's result, copied."""
    executor.submit(plan)
    result = executor.collect()
    return StepResult(*(getattr(result, name).copy() for name in StepResult.__slots__))


def same(left: StepResult, right: StepResult) -> None:
    for name in ("token", "logprob", "status"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def small_engine(executor: Executor, max_rows: int, blocks: int, overlap: bool) -> Engine:
    """An engine within the limits of `SMALL`."""
    return Engine(
        executor,
        EngineConfig(
            vocab=256,
            max_context=448,
            max_sequences=8,
            max_batched_tokens=96,
            max_rows=max_rows,
            blocks=blocks,
            overlap=overlap,
        ),
    )


def generate(engine: Engine, requests: list[Request]) -> dict[int, list[int]]:
    """The tokens of each request, all of which come at once."""
    for request in requests:
        engine.add(request)
    found: dict[int, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        output = engine.step()
        assert output is not None
        for request_id, token in zip(output.request_ids.tolist(), output.token_ids.tolist(), strict=True):
            found[request_id].append(token)
    return found
