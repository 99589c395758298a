"""One step's work and its result, as flat arrays, and the interface of what carries it out.

The fields are those of `Batch`, `Sampling` and `Sampled` in csrc/base/ops.h, where their meaning is defined; the core
checks them again before a kernel reads them. T tokens, S sequences, R rows whose logits are wanted.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 64

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


@dataclass(slots=True)
class StepPlan:
    """Arrays are C-contiguous. A group of optional arrays is None as a whole when no row needs it."""

    token_ids: Int32s  # [T] sequence by sequence, each in order
    positions: Int32s  # [T]
    slots: Int32s  # [T] block * 64 + offset: where the token's K and V go
    query_starts: Int32s  # [S + 1] first token of each sequence
    context_lens: Int32s  # [S] tokens in the cache once this step has run
    block_tables: Int32s  # [S, W] physical blocks in order; entries past a sequence's context are undefined
    sample_rows: Int32s  # [R] tokens whose logits are wanted, rising

    temperature: Float32s  # [R] 0 = greedy
    top_p: Float32s  # [R]
    min_p: Float32s  # [R]
    top_k: Int32s  # [R]
    seed: npt.NDArray[np.uint64]  # [R]
    draw: Int32s  # [R] index of this draw in its request

    # Tokens that are not known yet, because the step before this one is still to draw them
    token_sources: Int32s | None = None  # [T] row of that step whose token goes here; -1: token_ids has it

    # Log-probabilities
    top_logprobs: Int32s | None = None  # [R] alternatives wanted; -1 = no log-probability
    target: Int32s | None = None  # [R] >= 0: the token to score instead of drawing one

    # Penalties
    repetition_penalty: Float32s | None = None  # [R]
    presence_penalty: Float32s | None = None  # [R]
    frequency_penalty: Float32s | None = None  # [R]
    history_starts: Int32s | None = None  # [R + 1] into the two below
    history_ids: Int32s | None = None
    history_counts: Int32s | None = None

    # Bias
    bias_starts: Int32s | None = None  # [R + 1] into the two below
    bias_ids: Int32s | None = None
    bias_values: Float32s | None = None

    # Grammars
    masks: npt.NDArray[np.uint32] | None = None  # [M, ceil(vocab / 32)]
    mask_rows: Int32s | None = None  # [R] row of masks, or -1


@dataclass(slots=True)
class StepResult:
    """One entry a sampled row. The arrays may be views of buffers that the next submit or collect overwrites."""

    token: Int32s  # [R]
    logprob: Float32s  # [R]
    top_ids: Int32s  # [R, 20]
    top_logprobs: Float32s  # [R, 20]
    status: Int32s  # [R] 1 = the logits held NaN or nothing was allowed


class Executor(Protocol):
    """Runs steps in the order in which they are submitted."""

    def submit(self, plan: StepPlan) -> None:
        """Starts a step. The plan's arrays may be reused when this returns. One that overlaps takes a second step,
        with token_sources, before the first is collected."""

    def collect(self) -> StepResult:
        """Waits for the oldest submitted step."""
