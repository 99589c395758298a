"""What a step produced, for all requests at once, in flat arrays. Made by the scheduler, sent by ipc."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities (natural, of the raw distribution) of the output's entries `entries`, K the most wanted.

    A request that wants fewer alternatives than K finds its own in the first columns.
    """

    entries: Int32s  # [m] indices into the StepOutput's arrays, rising
    logprobs: Float32s  # [m] of the token drawn
    top_ids: Int32s  # [m, K] best first
    top_logprobs: Float32s  # [m, K]


@dataclass(slots=True)
class PromptLogprobs:
    """Log-probabilities of some of one prompt's tokens: `start`, `start` + 1, … (the prompt's first token has none)."""

    request_id: int
    start: int
    logprobs: Float32s  # [m]
    top_ids: Int32s  # [m, K]
    top_logprobs: Float32s  # [m, K]


@dataclass(slots=True)
class Started:
    """Requests whose first token is in this output: for usage and for the histogram of queue times."""

    entries: Int32s  # [m] indices into the StepOutput's arrays, rising
    cached_tokens: Int32s  # [m] prompt tokens found in the prefix cache
    queue_seconds: Float32s  # [m] from arrival to the first step


@dataclass(slots=True)
class RequestFailure:
    """Why a request ended with Finish.ERROR."""

    request_id: int
    message: str


@dataclass(slots=True)
class StepOutput:
    """One entry for each request that got a token or ended. Prompt log-probabilities come by the first token."""

    request_ids: Int64s  # [n]
    token_ids: Int32s  # [n] -1: the request ended without a token
    finish: npt.NDArray[np.uint8]  # [n] Finish
    logprobs: TokenLogprobs | None = None
    started: Started | None = None
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)
