"""One request as the engine takes it, and the ways in which it can end."""

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError

NAME_IN_USE = "name_in_use"  # the code of a RequestError


class Finish(enum.IntEnum):
    """How a request ended. STOP: its last token is an end or stop token. LENGTH: max_tokens or the context's end."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


class TokenFilter(Protocol):
    """Which tokens an answer may go on with, as far as it has come (engine/grammar.py)."""

    def allow(self, mask: npt.NDArray[np.uint32]) -> None:
        """Sets the bits of the tokens that may come next, in [ceil(vocab / 32)]."""

    def accept(self, token: int) -> bool:
        """Goes on by a token; False when it does not fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A prompt to continue. `request_id` is the caller's, unique among the requests in the engine."""

    request_id: int
    prompt: npt.NDArray[np.int32]  # [tokens], at least one
    sampling: SamplingParams
    cache_salt: str = ""  # prompts share cached blocks only with prompts of the same salt
    filter: TokenFilter | None = None  # made by the engine where sampling has a json_schema

    def limit(self, longest: int) -> int:
        """The length, in tokens, at which it ends if nothing ends it before. One token is always drawn."""
        return min(len(self.prompt) + max(self.sampling.max_tokens, 1), longest)


class QueueFull(RequestError):
    """As many requests wait as may. `retry_after` is the time, in seconds, in which the queue should drain."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(
            "",
            f"the server is at its limit of {waiting} waiting requests; try again in {retry_after} s",
            status=429,
            code="queue_full",
            kind="rate_limit_error",
            retry_after=retry_after,
        )


def check_request(request: Request, vocab: int, longest: int) -> None:
    """Raises RequestError, naming the field, for what `vocab` tokens and sequences of `longest` can't serve."""
    if request.request_id < 0:
        raise RequestError("request_id", f"request_id is {request.request_id}; it must not be negative")
    request.sampling.validate(vocab)
    prompt = request.prompt
    if not len(prompt):
        raise RequestError("prompt", "the prompt is empty; at least one token is needed")
    if len(prompt) + 1 > longest:
        raise RequestError(
            "prompt",
            f"the prompt has {len(prompt)} tokens; at most {longest - 1} fit, with one left for the answer",
            code="context_length_exceeded",
        )
    if prompt.min() < 0 or prompt.max() >= vocab:
        token = int(prompt[(prompt < 0) | (prompt >= vocab)][0])
        raise RequestError("prompt", f"the prompt holds token id {token}; ids are from 0 to {vocab - 1}")
