"""The two ways in which a bench can ask a server: OpenAI's completions, and PaddleNLP's private dialect.

The body of a request, and by what bytes its stream is counted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oarlock_runtime.cli.bench.workload import Ask


@dataclass(frozen=True)
class Dialect:
    """A way to ask, and the bytes by which a stream is counted."""

    path: str
    event: bytes  # begins each event
    done: bytes  # in the last event alone, after its usage
    last_has_token: bool  # when the answer ends by its length
    tail: int  # bytes kept of a stream: the usage and `done` are in them
    body: Callable[[Ask, str, str | list[int], dict[str, Any]], bytes]


def _openai(ask: Ask, model: str, prompt: str | list[int], extra: dict[str, Any]) -> bytes:
    """Greedy, streamed, never ending before its full length."""
    fields = {
        "model": model,
        "prompt": prompt,
        "max_tokens": ask.output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(fields | extra).encode()


def _private(ask: Ask, model: str, prompt: str | list[int], extra: dict[str, Any]) -> bytes:
    """The same in PaddleNLP's words."""
    fields = {
        "text" if isinstance(prompt, str) else "input_ids": prompt,
        "max_dec_len": ask.output,
        "min_dec_len": ask.output,
        "temperature": 0,
        "stream": True,
    }
    return json.dumps(fields | extra).encode()


DIALECTS = {
    "openai": Dialect("/v1/completions", b"\ndata:", b"\ndata: [DONE]", False, 4096, _openai),
    "private": Dialect("/v1/chat/completions", b'\n{"req_id"', b'"tokens_all":', True, 1 << 16, _private),
}
