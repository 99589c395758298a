"""The compiled core against the plain float32 forward: real weights by teacher forcing, every family in tiny models."""

from pathlib import Path

import numpy as np
import pytest
from support.forcing import forced_logits, predict
from support.prompts import ForcedText, forced_texts
from support.reference import Floats, Reference, round_to_int4, round_to_int8
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime.engine.executor import ExecutorOptions, load_executor
from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.loading import Quantization
from oarlock_runtime.models.tokenizer import load_tokenizer


def small(quantization: Quantization, dtype: str = "bf16") -> ExecutorOptions:
    return ExecutorOptions(
        quantization=quantization, dtype=dtype, max_sequences=4, max_context=512, max_batched_tokens=512, kv_blocks=16
    )


@pytest.fixture(scope="module")
def texts(smollm2: Path) -> list[ForcedText]:
    return forced_texts(load_tokenizer(smollm2))


@pytest.fixture(scope="module")
def as_shipped(smollm2: Path, texts: list[ForcedText]) -> list[Floats]:
    return forced_logits(Reference.load(open_checkpoint(smollm2)), texts)


@pytest.fixture(scope="module")
def as_int8(smollm2: Path, texts: list[ForcedText]) -> list[Floats]:
    """With every matrix quantized to 8 bits, as the core holds it, and back."""
    reference = Reference.load(open_checkpoint(smollm2))
    for value in reference.weights.values():
        if value.ndim == 2:
            round_to_int8(value)
    return forced_logits(reference, texts)


@pytest.fixture(scope="module")
def as_int4(smollm2: Path, texts: list[ForcedText]) -> list[Floats]:
    """With every matrix quantized to 4 bits, embedding and head to 8, as the core holds them, and back."""
    reference = Reference.load(open_checkpoint(smollm2))
    for name, value in reference.weights.items():
        if value.ndim == 2:
            round_to_int4(value) if name.startswith("layers.") else round_to_int8(value)
    return forced_logits(reference, texts)


@pytest.mark.parametrize(
    ("quantization", "dtype", "expected", "agreement", "margin"),
    [
        pytest.param("f32", "f32", "as_shipped", 1.0, 0.0, id="float32 agrees everywhere"),
        pytest.param("bf16", "bf16", "as_shipped", 0.99, 0.1, id="bf16"),
        pytest.param("int8", "bf16", "as_int8", 0.975, np.inf, id="int8"),
        pytest.param("int4", "bf16", "as_int4", 0.975, np.inf, id="int4"),
        pytest.param("auto", "bf16", "as_shipped", 0.975, np.inf, id="Q4_1 as shipped"),
    ],
)
def test_real_weights_pick_the_reference_token(
    smollm2: Path,
    texts: list[ForcedText],
    request: pytest.FixtureRequest,
    quantization: Quantization,
    dtype: str,
    expected: str,
    agreement: float,
    margin: float,
) -> None:
    executor = load_executor(open_checkpoint(smollm2), small(quantization, dtype))
    agreed, rows, margins = 0, 0, []
    for text, logits in zip(texts, request.getfixturevalue(expected), strict=True):
        predicted = predict(executor, text.ids).best[text.rows.start : text.rows.stop]
        best = logits.argmax(axis=1)
        agreed += int((best == predicted).sum())
        rows += len(best)
        # Log-probabilities differ as logits do: the normaliser is the same for both tokens.
        every = np.arange(len(best))
        margins += (logits[every, best] - logits[every, predicted])[best != predicted].tolist()
    print(f"{quantization}: {agreed} of {rows} tokens; largest margin {max(margins, default=0):.3f} nat")
    assert rows == 960
    assert agreed >= agreement * rows
    assert max(margins, default=0.0) <= margin


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_follows_the_reference(tmp_path: Path, family: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path, family)
    ids = np.random.default_rng(5).integers(0, checkpoint.spec.vocab, 150).tolist()
    logits = Reference.load(checkpoint).forward(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    logprobs -= logits.max(axis=1, keepdims=True)
    expected = logprobs[np.arange(len(ids) - 1), ids[1:]]
    for dtype, tolerance in (("f32", 2e-4), ("bf16", 0.2)):
        executor = load_executor(
            checkpoint,
            ExecutorOptions(
                dtype=dtype, max_sequences=4, max_context=256, max_batched_tokens=256, kv_blocks=8, threads=2
            ),
        )
        got = predict(executor, ids).logprob[:-1]
        assert np.abs(got - expected).max() < tolerance, (family, dtype)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1"])
def test_a_quantized_file_follows_its_own_dequantization(tmp_path: Path, dtype: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "llama", dtype)
    ids = np.random.default_rng(6).integers(0, checkpoint.spec.vocab, 150).tolist()
    logits = Reference.load(checkpoint).forward(ids)
    executor = load_executor(
        checkpoint,
        ExecutorOptions(max_sequences=4, max_context=256, max_batched_tokens=256, kv_blocks=8),
    )
    best = predict(executor, ids).best
    every = np.arange(len(ids))
    assert np.abs(logits[every, logits.argmax(axis=1)] - logits[every, best]).max() < 0.1
