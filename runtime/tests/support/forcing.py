"""Teacher forcing through the compiled core: what it predicts after every token of a given text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from support.prompts import ForcedText
from support.reference import Floats, Reference

from oarlock_runtime.engine.executor import CoreExecutor
from oarlock_runtime.engine.plan import BLOCK_TOKENS, StepPlan


@dataclass(frozen=True)
class Predictions:
    """One entry a row: the best next token, and the log-probability of the token that really followed."""

    best: npt.NDArray[np.int32]
    logprob: npt.NDArray[np.float32]


def forced_plan(texts: list[list[int]], starts: list[int] | None = None) -> StepPlan:
    """A step over whole texts (from `starts` on), every row but each text's last scored against the token that follows.

    Text i uses its own run of KV blocks, so several calls with rising starts continue each other.
    """
    starts = starts or [0] * len(texts)
    width = max(-(-len(text) // BLOCK_TOKENS) for text in texts)
    tables = np.arange(len(texts) * width, dtype=np.int32).reshape(len(texts), width)
    counts = [len(text) - start for text, start in zip(texts, starts, strict=True)]
    positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]).astype(np.int32)
    owner = np.repeat(np.arange(len(texts)), counts)
    targets = np.concatenate(
        [np.append(text[start + 1 :], -1) for text, start in zip(texts, starts, strict=True)]
    ).astype(np.int32)
    rows = len(positions)
    return StepPlan(
        token_ids=np.concatenate([text[start:] for text, start in zip(texts, starts, strict=True)]).astype(np.int32),
        positions=positions,
        slots=tables[owner, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS,
        query_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        context_lens=np.array([len(text) for text in texts], np.int32),
        block_tables=tables,
        sample_rows=np.arange(rows, dtype=np.int32),
        temperature=np.zeros(rows, np.float32),
        top_p=np.ones(rows, np.float32),
        min_p=np.zeros(rows, np.float32),
        top_k=np.zeros(rows, np.int32),
        seed=np.zeros(rows, np.uint64),
        draw=np.zeros(rows, np.int32),
        top_logprobs=np.ones(rows, np.int32),
        target=targets,
    )


def predict(executor: CoreExecutor, text: list[int]) -> Predictions:
    """What the core predicts after each token of one text."""
    executor.submit(forced_plan([text]))
    result = executor.collect()
    assert not result.status.any()
    return Predictions(result.top_ids[:, 0].copy(), result.logprob.copy())


def forced_logits(reference: Reference, texts: list[ForcedText]) -> list[Floats]:
    """For each text, the reference's logits of the rows that predict its continuation."""
    return [
        reference.hidden_states(text.ids)[-1][text.rows.start : text.rows.stop] @ reference.head.T for text in texts
    ]
