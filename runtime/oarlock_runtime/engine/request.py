"""One request as the engine takes it, and the ways in which it can end."""

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError


class Finish(enum.IntEnum):
    """How a request ended. STOP: its last token is an end or stop token. LENGTH: max_tokens or the context's end."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A prompt to continue. `request_id` is the caller's, unique among the requests in the engine."""

    request_id: int
    prompt: npt.NDArray[np.int32]  # [tokens], at least one
    sampling: SamplingParams
    cache_salt: str = ""  # prompts share cached blocks only with prompts of the same salt


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
