"""Log-probabilities in OpenAI's two shapes. Runs in the server processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FLOOR = -9999.0  # stands for minus infinity, which JSON can't say


@dataclass(slots=True)
class TokenScore:
    """A token with its log-probability and the best alternatives; `offset` is where its text begins in the choice's."""

    token: int
    logprob: float | None  # None: the first token of a prompt has none
    top: list[tuple[int, float]]
    offset: int


def completion_logprobs(scores: list[TokenScore], text_of: Callable[[int], str], alternatives: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice. The drawn token is among its alternatives, as with OpenAI."""
    tops: list[dict[str, float] | None] = []
    for score in scores:
        if score.logprob is None or alternatives == 0:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token, logprob in [*score.top, (score.token, score.logprob)]:
            top.setdefault(text_of(token), max(logprob, FLOOR))
        tops.append(top)
    return {
        "tokens": [text_of(score.token) for score in scores],
        "token_logprobs": [None if score.logprob is None else max(score.logprob, FLOOR) for score in scores],
        "top_logprobs": tops,
        "text_offset": [score.offset for score in scores],
    }


def chat_logprobs(scores: list[TokenScore], bytes_of: Callable[[int], bytes]) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""

    def told(token: int, logprob: float | None) -> dict[str, Any]:
        raw = bytes_of(token)
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": max(logprob or 0.0, FLOOR),
            "bytes": list(raw),
        }

    content = [
        {**told(score.token, score.logprob), "top_logprobs": [told(*other) for other in score.top]} for score in scores
    ]
    return {"content": content, "refusal": None}
