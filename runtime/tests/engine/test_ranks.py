"""A model split over ranks against the whole: real weights by teacher forcing, every family in tiny models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.forcing import forced_logits, forced_plan, predict
from support.prompts import ForcedText, forced_texts
from support.ranks import split_executor, threaded_executor
from support.reference import Floats, Reference
from support.tiny import FAMILIES, tiny_checkpoint, tiny_directory

from oarlock_runtime import _C
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.ranks import require_devices
from oarlock_runtime.errors import SettingError
from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.tokenizer import load_tokenizer

SMALL = ExecutorOptions(max_sequences=4, max_context=512, max_batched_tokens=512, kv_blocks=16, threads=1)


def agreement(executor: CoreExecutor, texts: list[ForcedText], logits: list[Floats]) -> tuple[float, float]:
    """Share of the reference's best tokens that the core picks, and the largest margin where it does not."""
    agreed, rows, margins = 0, 0, [0.0]
    for text, expected in zip(texts, logits, strict=True):
        got = predict(executor, text.ids).best[text.rows.start : text.rows.stop]
        best = expected.argmax(axis=1)
        every = np.arange(len(best))
        agreed += int((best == got).sum())
        rows += len(best)
        margins += (expected[every, best] - expected[every, got])[best != got].tolist()
    return agreed / rows, max(margins)


@pytest.fixture(scope="module")
def texts(smollm2: Path) -> list[ForcedText]:
    return forced_texts(load_tokenizer(smollm2))


@pytest.fixture(scope="module")
def logits(smollm2: Path, texts: list[ForcedText]) -> list[Floats]:
    return forced_logits(Reference.load(open_checkpoint(smollm2)), texts)


@pytest.mark.parametrize("world", [2, 4])
def test_real_weights_keep_the_parity_rule(
    smollm2: Path, texts: list[ForcedText], logits: list[Floats], world: int
) -> None:
    options = ExecutorOptions(
        quantization="bf16", max_sequences=4, max_context=512, max_batched_tokens=512, kv_blocks=16, threads=1
    )
    with split_executor(smollm2, options, world) as executor:
        share, margin = agreement(executor, texts, logits)
    print(f"{world} ranks: {share:.2%} of the reference's tokens, largest margin {margin:.3f} nat")
    assert share >= 0.99
    assert margin < 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("world", [2, 4])
def test_every_family_keeps_the_parity_rule(tmp_path: Path, family: str, world: int) -> None:
    # 6 query heads over 2 KV heads: over 4 ranks each KV head is held twice, its three query heads shared 1 to 2.
    path = tiny_directory(tmp_path, family, num_attention_heads=6, num_key_value_heads=2, head_dim=32)
    ids = np.random.default_rng(5).integers(0, 256, 300).tolist()
    plan = forced_plan([ids])
    plan.top_logprobs = np.full(len(ids), 20, np.int32)
    plan.target = np.full(len(ids), -1, np.int32)
    whole = load_executor(open_checkpoint(path), SMALL)
    whole.submit(plan)
    expected = whole.collect()
    with split_executor(path, SMALL, world) as executor:
        executor.submit(plan)
        got = executor.collect().token.copy()
        plain = replace(plan, top_logprobs=np.full(len(ids), -1, np.int32))
        executor.submit(plain)
        assert (executor.collect().token == got).all()
    differ = np.flatnonzero(got != expected.token)
    assert len(differ) <= len(ids) // 100
    for row in differ:
        place = expected.top_ids[row].tolist().index(got[row])
        assert expected.top_logprobs[row, 0] - expected.top_logprobs[row, place] < 0.1


@given(
    family=st.sampled_from(FAMILIES),
    kv_heads=st.integers(1, 5),
    group=st.integers(1, 5),
    ffn=st.integers(6, 12).map(lambda units: 32 * units),
    vocab=st.integers(400, 700),
    world=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_split_computes_the_whole(
    tmp_path_factory: pytest.TempPathFactory, family: str, kv_heads: int, group: int, ffn: int, vocab: int, world: int
) -> None:
    # Heads, features and tokens that need not divide; a KV head's query heads are shared by as many ranks as it has.
    assume(world <= kv_heads or -(-world // kv_heads) <= group)
    checkpoint = tiny_checkpoint(
        tmp_path_factory.mktemp("split"),
        family,
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=32,
        intermediate_size=ffn,
        vocab_size=vocab,
    )
    exact = replace(SMALL, dtype="f32", max_context=128, max_batched_tokens=128)
    ids = np.random.default_rng(7).integers(0, vocab, 70).tolist()
    expected = predict(load_executor(checkpoint, exact), ids)
    with threaded_executor(checkpoint, exact, world) as executor:
        got = predict(executor, ids)
    assert np.abs(got.logprob[:-1] - expected.logprob[:-1]).max() < 1e-3
    assert (got.best == expected.best).mean() > 0.97


def test_drawn_tokens_are_the_same_split(tmp_path: Path) -> None:
    # Rows of every kind in one step: what the shares decide, what a second exchange does, and what is gathered.
    path = tiny_directory(tmp_path, "llama", num_attention_heads=6, num_key_value_heads=2, head_dim=32)
    exact = replace(SMALL, dtype="f32", max_batched_tokens=512)
    random = np.random.default_rng(11)
    ids = random.integers(0, 256, 400).tolist()
    rows = len(ids)
    plan = forced_plan([ids])
    plan.target = np.where(random.random(rows) < 0.1, plan.target, -1).astype(np.int32)
    plan.temperature = random.choice([0, 0.3, 0.8, 1.5], rows).astype(np.float32)
    plan.top_p = random.choice([1, 0.5, 0.9], rows).astype(np.float32)
    plan.min_p = random.choice([0, 0, 0.1], rows).astype(np.float32)
    plan.top_k = random.choice([0, 0, 1, 40, 200], rows).astype(np.int32)
    plan.seed = random.integers(0, 1 << 63, rows, np.uint64)
    plan.draw = np.arange(rows, dtype=np.int32)
    plan.top_logprobs = random.choice([-1, 0, 5, 20], rows).astype(np.int32)
    biased = random.random(rows) < 0.1
    plan.bias_starts = np.concatenate([[0], np.cumsum(biased)]).astype(np.int32)
    plan.bias_ids = random.integers(0, 512, biased.sum()).astype(np.int32)
    plan.bias_values = np.full(biased.sum(), 4, np.float32)

    def drawn(executor: CoreExecutor) -> list[Floats]:
        executor.submit(plan)
        result = executor.collect()
        return [np.array(value, copy=True) for value in (result.token, result.logprob, result.status, result.top_ids)]

    token, logprob, status, top_ids = drawn(load_executor(open_checkpoint(path), exact))
    with split_executor(path, exact, 3) as executor:
        got_token, got_logprob, got_status, got_top_ids = drawn(executor)
    same = got_token == token
    assert same.mean() > 0.99
    assert np.abs(got_logprob - logprob)[same].max() < 1e-3
    assert not status.any() and not got_status.any()
    listed = plan.top_logprobs > 0
    assert (got_top_ids[listed, :5] == top_ids[listed, :5]).mean() > 0.99


def test_every_rank_of_a_host_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "cuda_device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    require_devices(2, "--ranks 2")
    with pytest.raises(SettingError, match=r"^--ranks 4 takes 4 GPUs .* there are 2 \(CUDA_VISIBLE_DEVICES=3,5\)$"):
        require_devices(4, "--ranks 4")
