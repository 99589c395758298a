"""The CUDA executor against the CPU's, and against itself: graphs or none, alone or in company, two steps on their way.

`make gpu-test` runs these on a machine with a GPU; elsewhere they are skipped.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cuda import CUDA, needs_cuda, run, same, tiny
from support.forcing import forced_plan
from support.prompts import forced_texts
from support.tiny import FAMILIES

from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine.executor import load_executor
from oarlock_runtime.engine.plan import StepPlan
from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.tokenizer import load_tokenizer

pytestmark = needs_cuda

REAL_MODEL = os.environ.get("TEST_MODEL", "")  # SmolLM2-135M-Instruct, as its package ships it


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
