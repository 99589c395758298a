"""The CUDA executor against the CPU's, and against itself: graphs or none, alone or in company, two steps on their way.

`make gpu-test` runs these on a machine with a GPU; elsewhere they are skipped.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.forcing import forced_plan
from support.prompts import forced_texts
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime import _C
from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine import kv_cache
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.plan import StepPlan, StepResult
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif("cuda" not in _C.devices(), reason="this build has no device cuda")

REAL_MODEL = os.environ.get("TEST_MODEL", "")  # SmolLM2-135M-Instruct, as its package ships it
CUDA = ExecutorOptions(device="cuda", max_sequences=64, max_context=512, max_batched_tokens=512, kv_blocks=512)


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


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_follows_the_cpu(tmp_path: Path, family: str, dtype: str) -> None:
    checkpoint = tiny(tmp_path, family)
    random = np.random.default_rng(5)
    texts = [random.integers(0, checkpoint.spec.vocab, count).tolist() for count in (150, 1, 70, 200)]
    plan = forced_plan(texts)
    expected = run(load_executor(checkpoint, replace(CUDA, device="cpu", dtype="f32", threads=4)), plan)
    got = run(load_executor(checkpoint, replace(CUDA, dtype=dtype)), plan)
    assert not got.status.any()
    rows = plan.target >= 0 if plan.target is not None else slice(None)
    assert np.abs(got.logprob - expected.logprob)[rows].max() < 0.2
    differ = got.top_ids[:, 0] != expected.top_ids[:, 0]
    assert differ.mean() < 0.1


@pytest.mark.skipif(not REAL_MODEL, reason="TEST_MODEL names no model")
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_real_weights_pick_the_reference_token(dtype: str) -> None:
    """The rule of the CPU engine: 99 % of the tokens, and where another is taken, the reference hardly prefers its own.
    The CPU in float32, which agrees with the reference everywhere, says by how much."""
    texts = forced_texts(load_tokenizer(REAL_MODEL))
    checkpoint = open_checkpoint(REAL_MODEL)
    executor = load_executor(checkpoint, replace(CUDA, dtype=dtype))
    exact = load_executor(checkpoint, replace(CUDA, device="cpu", dtype="f32", quantization="f32", threads=8))
    agreed, rows, margins = 0, 0, [0.0]
    for text in texts:
        plan = forced_plan([text.ids])
        plan.top_logprobs = np.full(len(plan.sample_rows), 20, np.int32)
        chosen = slice(text.rows.start, text.rows.stop)
        got, wanted = run(executor, plan).top_ids[chosen, 0], run(exact, plan)
        ids, logprobs = wanted.top_ids[chosen], wanted.top_logprobs[chosen]
        np.testing.assert_array_equal(ids[:, 0], text.continuation)
        agreed += int((got == ids[:, 0]).sum())
        rows += len(got)
        for row in np.flatnonzero(got != ids[:, 0]).tolist():
            places = np.flatnonzero(ids[row] == got[row])
            margins.append(float(logprobs[row, 0] - logprobs[row, places[0]]) if len(places) else np.inf)
    print(f"{dtype}: {agreed} of {rows} tokens; largest margin {max(margins):.3f} nat")
    assert rows == 960
    assert agreed >= 0.99 * rows
    assert max(margins) < 0.1


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 9, 31, 33, 64])
def test_graphs_give_the_same_bits(tmp_path: Path, batch: int) -> None:
    checkpoint = tiny(tmp_path)
    plain = load_executor(checkpoint, replace(CUDA, graphs=False, batch_invariant=True))
    graphs = load_executor(checkpoint, replace(CUDA, batch_invariant=True))
    random = np.random.default_rng(batch)
    for context in (1, 90, 400, 200, 130, 500):  # other widths of the tables, and back
        plan = step_plan(checkpoint.spec.vocab, batch, 1, context)
        plan.token_ids = random.integers(0, checkpoint.spec.vocab, batch).astype(np.int32)
        plan.temperature = random.choice([0, 0.9], batch).astype(np.float32)
        plan.seed = random.integers(0, 1 << 40, batch).astype(np.uint64)
        plan.top_logprobs = np.full(batch, 3, np.int32)
        expected = run(plain, plan)
        for _ in range(3):  # call by call, captured, replayed
            got = run(graphs, plan)
            same(got, expected)
            np.testing.assert_array_equal(got.top_ids[:, :3], expected.top_ids[:, :3])


def constrained(plan: StepPlan, vocab: int, seed: int) -> StepPlan:
    """With penalties, a bias and masks on some of its rows."""
    random = np.random.default_rng(seed)
    rows = len(plan.sample_rows)

    def starts(counts: Any) -> Any:
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    seen, biased = random.integers(0, 30, rows), random.integers(0, 5, rows)
    plan.history_starts, plan.bias_starts = starts(seen), starts(biased)
    plan.history_ids = np.concatenate([random.permutation(vocab)[:count] for count in seen]).astype(np.int32)
    plan.history_counts = random.integers(0, 4, seen.sum()).astype(np.int32)
    plan.repetition_penalty = np.full(rows, 1.3, np.float32)
    plan.presence_penalty = np.full(rows, 0.5, np.float32)
    plan.frequency_penalty = np.full(rows, 0.2, np.float32)
    plan.bias_ids = np.concatenate([random.permutation(vocab)[:count] for count in biased]).astype(np.int32)
    plan.bias_values = random.normal(0, 3, biased.sum()).astype(np.float32)
    plan.masks = random.integers(0, 1 << 32, (2, (vocab + 31) // 32)).astype(np.uint32)
    plan.mask_rows = random.integers(-1, 2, rows).astype(np.int32)
    return plan


def test_penalties_bias_and_masks_in_graphs(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path)
    vocab = checkpoint.spec.vocab
    plain = load_executor(checkpoint, replace(CUDA, graphs=False))
    graphs = load_executor(checkpoint, CUDA)
    for seed, batch in enumerate([3, 3, 3, 20, 20, 20, 3, 20]):
        plan = step_plan(vocab, batch, 1, 100)
        expected = run(plain, constrained(plan, vocab, seed))
        same(run(graphs, plan), expected)
        same(run(graphs, step_plan(vocab, batch, 1, 100)), run(plain, step_plan(vocab, batch, 1, 100)))


def test_two_steps_on_their_way(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path)
    executor = load_executor(checkpoint, CUDA)
    plans = [step_plan(checkpoint.spec.vocab, batch, 1, 70 + batch) for batch in (5, 5, 17, 5, 17, 17, 5)]
    expected = [run(executor, plan) for plan in plans]
    executor.submit(plans[0])
    for before, after in zip(expected, plans[1:], strict=False):
        executor.submit(after)
        same(executor.collect(), before)
    with pytest.raises(ValueError, match="a third step"):
        for _ in range(3):
            executor.submit(plans[0])


def test_a_step_goes_on_with_the_tokens_of_the_one_before(tmp_path: Path) -> None:
    """Fed forward on the device, into the places that the second plan leaves open."""
    checkpoint = tiny(tmp_path)
    executor = load_executor(checkpoint, replace(CUDA, batch_invariant=True))
    for batch in (5, 5, 5, 33, 33, 33):  # call by call, captured, replayed
        before, after = step_plan(checkpoint.spec.vocab, batch, 1, 70), step_plan(checkpoint.spec.vocab, batch, 1, 71)
        before.temperature[:], before.seed[:] = 1, np.arange(batch)
        rows = np.random.default_rng(batch).permutation(batch).astype(np.int32)
        rows[::4] = -1
        after.block_tables = before.block_tables
        first = run(executor, before)
        after.token_ids = np.where(rows < 0, after.token_ids, first.token[rows])
        second = run(executor, after)
        after.token_ids = np.where(rows < 0, after.token_ids, 0)
        after.token_sources = rows
        executor.submit(before)
        executor.submit(after)
        same(executor.collect(), first)
        same(executor.collect(), second)
        after.token_sources = np.full(batch, batch, np.int32)
        with pytest.raises(ValueError, match=f"token_sources.*is {batch}, outside -1 to {batch - 1}"):
            executor.submit(after)


class Jittery:
    """An executor whose host is late at random."""

    def __init__(self, executor: CoreExecutor, seed: int) -> None:
        self._executor, self._dice = executor, np.random.default_rng(seed)

    def submit(self, plan: StepPlan) -> None:
        time.sleep(self._dice.choice([0, 0, 0.003]))
        self._executor.submit(plan)

    def collect(self) -> StepResult:
        time.sleep(self._dice.choice([0, 0, 0.003]))
        return self._executor.collect()


def generate(
    executor: CoreExecutor, requests: list[Request], blocks: int, overlap: bool = False, seed: int = 0
) -> dict[int, list[int]]:
    engine = Engine(
        Jittery(executor, seed),
        EngineConfig(
            vocab=256,
            max_context=448,
            max_sequences=8,
            max_batched_tokens=96,
            max_rows=executor.max_rows,
            blocks=blocks,
            overlap=overlap,
        ),
    )
    for request in requests:
        engine.add(request)
    found: dict[int, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        output = engine.step()
        assert output is not None
        for request_id, token in zip(output.request_ids.tolist(), output.token_ids.tolist(), strict=True):
            found[request_id].append(token)
    assert engine.stats().preemptions_total > 0 or blocks > 16
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_crowded_engine_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """With few blocks and preemption, graphs or none, steps that overlap or not: the same tokens, and those of ample
    blocks."""
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
    small = replace(CUDA, max_context=448, max_sequences=8, max_batched_tokens=96, kv_blocks=12, batch_invariant=True)
    graphs = load_executor(checkpoint, small)
    first = generate(graphs, requests, 12)
    assert all(len(first[request.request_id]) == request.sampling.max_tokens for request in requests)
    for overlap in (True, False):
        assert generate(graphs, requests, 12, overlap, seed=1) == first
    assert generate(load_executor(checkpoint, replace(small, graphs=False)), requests, 12) == first
    for overlap in (True, False):
        assert generate(load_executor(checkpoint, replace(small, kv_blocks=64)), requests, 64, overlap) == first


def test_what_the_device_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path)
    with pytest.raises(ValueError, match=r"f32.*bf16, f16, which device cuda has"):
        load_executor(checkpoint, replace(CUDA, dtype="f32"))
    with pytest.raises(ValueError, match="compute dtype"):
        load_executor(checkpoint, replace(CUDA, quantization="int8"))
    with pytest.raises(Exception, match="asks for a KV cache"):
        load_executor(checkpoint, replace(CUDA, kv_blocks=1 << 28))


def test_memory_that_is_taken_is_refused(tmp_path: Path) -> None:
    """By whatever holds it: the weights and the workspace of a second model find no room, and the first one runs on."""
    checkpoint = tiny(tmp_path)
    plan = step_plan(checkpoint.spec.vocab, 4, 1, 70)
    executor = load_executor(checkpoint, CUDA)
    expected = run(executor, plan)
    with pytest.raises(RuntimeError, match=r"the device has no room for \d+ bytes"):
        load_executor(checkpoint, replace(CUDA, max_sequences=1 << 23, kv_blocks=8))
    same(run(executor, plan), expected)


FAULT = r"""
import ctypes, sys, time
from pathlib import Path
import numpy as np
from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine.executor import ExecutorOptions, load_executor
from oarlock_runtime.models.checkpoint import open_checkpoint

executor = load_executor(
    open_checkpoint(sys.argv[1]), ExecutorOptions(device="cuda", max_sequences=8, max_context=128, kv_blocks=16)
)
plan = step_plan(256, 4, 1, 70)
executor.submit(plan)
executor.collect()
driver = ctypes.CDLL("libcuda.so.1")
module, function = ctypes.c_void_p(), ctypes.c_void_p()
source = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry fault() { trap; }\0"
assert driver.cuModuleLoadData(ctypes.byref(module), source) == 0
assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"fault") == 0
assert driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
begin = time.monotonic()
for _ in range(2):
    try:
        executor.submit(plan)
        executor.collect()
    except RuntimeError as error:
        print("refused:", error)
assert time.monotonic() - begin < 20
"""


def test_a_fault_on_the_device_ends_with_a_message(tmp_path: Path) -> None:
    """In a process of its own, whose device is lost: the steps after it are refused, and the process can end."""
    checkpoint = tiny(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FAULT, checkpoint.path], capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("refused:") == 2, done.stdout
