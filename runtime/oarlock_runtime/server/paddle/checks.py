"""What can be said against a task before its prompt is tokenized, in PaddleNLP's words. Runs in the server processes.

All that is wrong is told at once. Where PaddleNLP checks nothing (and fails later, or answers nonsense) there are rules
of our own in the same style.
"""

import math
from collections.abc import Iterator
from typing import Any

from oarlock_runtime.server.paddle.task import Task

MAX_REQ_ID = 512  # characters; every frame repeats it
_PENALTIES = (
    ("penalty_score", 0, 100),
    ("frequency_score", -2, 2),
    ("presence_score", -2, 2),
)  # what the sampler takes
_FLAGS = ("return_all_tokens", "return_usage", "benchmark", "enable_text_truncate")


def check(task: Task, *, vocab: int, longest: int, stops: int) -> list[str]:
    """The messages of all rules that `task` breaks, in PaddleNLP's order. Token ids are below `vocab`; at most `stops`
    stop sequences are allowed; of a prompt only the first `longest` tokens are looked at, since none may be longer."""
    return [
        *_prompt(task, vocab, longest),
        *_name(task),
        *_lengths(task),
        *_sampling(task),
        *_endings(task, vocab, stops),
        *_seeds(task),
        *_answer(task),
    ]


def integer(value: Any) -> bool:
    """Whether it is an integer (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    return (integer(value) or isinstance(value, float)) and low <= value <= high


def _prompt(task: Task, vocab: int, longest: int) -> Iterator[str]:
    if not any(name in task for name in ("text", "input_ids", "messages")):
        yield "The input parameters should contain either `text`, `input_ids` or `messages`"
        return
    text = task.get("text", " ")
    if not isinstance(text, str):
        yield "The `text` in input parameters must be a string"
    elif not text:
        yield "The `text` in input parameters cannot be empty"
    if not isinstance(task.get("system", ""), str):
        yield "The `system` in input parameters must be a string"
    if "input_ids" in task:
        yield from _input_ids(task["input_ids"], vocab, longest)
    if "messages" in task:
        yield from _messages(task["messages"])


def _input_ids(ids: Any, vocab: int, longest: int) -> Iterator[str]:
    if not isinstance(ids, list):
        yield "The `input_ids` in input parameters must be a list"
        return
    ids = ids[:longest]
    if not ids:
        yield "The `input_ids` in input parameters cannot be empty"
    elif set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= vocab:
        yield f"The `input_ids` in input parameters must be integers in [0, {vocab - 1}]"


def _messages(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list):
        yield "The `messages` in input parameters must be a list"
        return
    if not messages:
        yield "The `messages` in input parameters cannot be empty"
    if not all(isinstance(item, dict) and "content" in item for item in messages):
        yield "The item in messages must include `content`"
        return
    if not all(isinstance(item["content"], str) for item in messages):
        yield "The `content` of each item in messages must be a string"
    if not all(isinstance(item.get("role"), str) for item in messages):
        yield "The `role` of each item in messages must be a string"


def _name(task: Task) -> Iterator[str]:
    if "req_id" not in task:
        yield "The input parameters should contain `req_id`."
    elif not (integer(task["req_id"]) or isinstance(task["req_id"], str)):
        yield "The `req_id` must be a string"
    elif len(str(task["req_id"])) > MAX_REQ_ID:
        yield f"The length of `req_id` must be at most {MAX_REQ_ID}"


def _lengths(task: Task) -> Iterator[str]:
    for name in ("min_dec_len", "max_dec_len", "seq_len", "max_tokens"):
        value = task.get(name, 1)
        if not integer(value) or value < 1:
            yield f"The `{name}` must be an integer and greater than 0"


def _sampling(task: Task) -> Iterator[str]:
    if "topp" in task and "top_p" in task:
        yield "Only one of ('topp', 'top_p') should be set"
    else:
        for name in ("topp", "top_p"):
            if not _number(task.get(name, 0), 0, 1):
                yield f"The `{name}` must be in [0, 1]"
    temperature = task.get("temperature", 0)
    if not _number(temperature, 0):
        yield "The `temperature` must be >= 0"
    elif temperature > 100:
        yield "The `temperature` must be in [0, 100]"
    for name, low, high in _PENALTIES:
        value = task.get(name, 1)
        if not _number(value, low, high) or (name == "penalty_score" and value == 0):
            yield f"The `{name}` must be in {'(' if name == 'penalty_score' else '['}{low}, {high}]"


def _endings(task: Task, vocab: int, stops: int) -> Iterator[str]:
    ids = task.get("eos_token_ids", [])
    ids = [ids] if integer(ids) else ids
    if not isinstance(ids, list):
        yield "The `eos_token_ids` must be an list"
    elif len(ids) > 1:
        yield "The length of `eos_token_ids` must be 1 if you set it"
    elif not all(integer(one) and 0 <= one < vocab for one in ids):
        yield f"The `eos_token_ids` must be integers in [0, {vocab - 1}]"
    if "stop_sequences" in task and "stop_seqs" in task:
        yield "Only one of ('stop_sequences', 'stop_seqs') should be set"
    for name in ("stop_sequences", "stop_seqs"):
        texts = task.get(name, [])
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            yield f"The `{name}` must be a list of strings"
        elif len(texts) > stops:
            yield f"The length of `{name}` must be at most {stops}"


def _seeds(task: Task) -> Iterator[str]:
    if "infer_seed" in task and "seed" in task:
        yield "Only one of ('infer_seed', 'seed') should be set"
        return
    for name in ("infer_seed", "seed"):
        value = task.get(name, 0)
        if not integer(value) or not -(1 << 63) <= value < 1 << 64:
            yield f"The `{name}` must be an integer of 64 bits"


def _answer(task: Task) -> Iterator[str]:
    if not isinstance(task.get("stream", False), bool):
        yield "The `stream` must be a boolean"
    wanted = task.get("response_type", "fastdeploy")
    if not isinstance(wanted, str) or wanted.lower() not in ("fastdeploy", "openai"):
        yield "The `response_type` must be either `fastdeploy` or `openai`."
    for name in _FLAGS:
        value = task.get(name, False)
        if not isinstance(value, bool | int) or value not in (0, 1):
            yield f"The `{name}` must be a boolean"
    timeout = task.get("timeout", 1)
    if not _number(timeout, 0) or timeout == 0:
        yield "The `timeout` must be a number greater than 0"
