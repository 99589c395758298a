"""A model split over ranks against the whole: real weights by teacher forcing, every family in tiny models."""

from pathlib import Path

import numpy as np
import pytest
from support.forcing import forced_logits, forced_plan, predict
from support.prompts import ForcedText, forced_texts
from support.ranks import split_executor
from support.reference import Floats, Reference
from support.tiny import FAMILIES, tiny_directory

from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
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
def test_every_family_is_the_same_split(tmp_path: Path, family: str) -> None:
    # 6 query heads over 2 KV heads: over 4 ranks each KV head is held twice, its three query heads shared 1 to 2.
    path = tiny_directory(tmp_path, family, num_attention_heads=6, num_key_value_heads=2, head_dim=32)
    whole = load_executor(open_checkpoint(path), SMALL)
    ids = np.random.default_rng(5).integers(0, 256, 150).tolist()
    expected = predict(whole, ids)
    with split_executor(path, SMALL, 4) as executor:
        got = predict(executor, ids)
        # Greedy rows exchange candidates, not logits.
        plan = forced_plan([ids])
        plan.target = np.full(len(ids), -1, np.int32)
        plan.top_logprobs = np.full(len(ids), -1, np.int32)
        executor.submit(plan)
        likeliest = executor.collect().token.copy()
    assert np.abs(got.logprob[:-1] - expected.logprob[:-1]).max() < 0.2
    assert (got.best == likeliest).all()
    assert (got.best == expected.best).mean() > 0.9
