"""From a task to what the engine is asked: PaddleNLP's order of checks, its defaults, and its sampling in our terms.

Runs in the server processes; transport-free. `prepare` may take long for a long prompt.
"""

import logging
import random
from dataclasses import dataclass
from typing import Any

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.limits import CHARACTERS_A_TOKEN, Limits
from oarlock_runtime.server.paddle.block_plan import BlockPlan
from oarlock_runtime.server.paddle.checks import check
from oarlock_runtime.server.paddle.failure import REJECTED, PaddleError, unexpected
from oarlock_runtime.server.paddle.task import Task
from oarlock_runtime.settings import Settings

TOPP, TEMPERATURE = 0.7, 0.95  # of requests that say nothing
TIMEOUT = 300.0  # seconds, likewise
_UNTOLD_OUTPUT = 800  # tokens that truncation leaves for the answer of a request without max_dec_len

_log = logging.getLogger("oarlock.paddle")


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of PaddleNLP's admission, and which of its ways were chosen."""

    vocab: int
    max_seq_len: int  # tokens of prompt and answer together
    prompt_limit: int  # MAX_SEQ_LEN
    output_limit: int  # MAX_DEC_LEN
    stop_sequences: int  # MAX_STOP_SEQS_NUM
    stop_tokens: int  # STOP_SEQS_MAX_LEN
    end_ids: tuple[int, ...]  # the tokenizer's end tokens
    strict: bool  # upstream's quirks
    last_frame_only: bool  # DISABLE_STREAMING
    plain_text: bool  # `text` goes to the model as it is, without a chat template
    system_field: bool  # `system` counts
    blocks: BlockPlan | None  # PaddleNLP's arithmetic, where it sizes the KV pool

    @classmethod
    def of(cls, settings: Settings, limits: Limits, context: int) -> "Rules":
        """`context`: tokens of a sequence, whatever the KV pool holds."""
        return cls(
            vocab=limits.vocab,
            max_seq_len=context if settings.block_bs else limits.max_context,
            prompt_limit=min(settings.max_prompt_tokens or limits.max_context, limits.max_context),
            output_limit=min(limits.max_output_tokens or limits.max_context, limits.max_context),
            system_field=settings.system_field,
            blocks=BlockPlan.of(settings, context),
            stop_sequences=settings.stop_sequences,
            stop_tokens=settings.stop_sequence_tokens,
            end_ids=limits.end_ids,
            strict=settings.strict_paddle,
            last_frame_only=settings.disable_streaming,
            plain_text=settings.hf_tokenizer,
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request, ready for the engine and for its frames."""

    req_id: str | int
    prompt: list[int]
    sampling: SamplingParams
    stop: tuple[str, ...]
    stream: bool
    last_frame_only: bool
    return_all_tokens: bool
    return_usage: bool
    benchmark: bool

    @property
    def seed(self) -> int:
        """The seed that the request draws from, given or made."""
        assert self.sampling.seed is not None
        return self.sampling.seed


def prepare(task: Task, tokenizer: Tokenizer, rules: Rules) -> Prepared:
    """PaddleError with PaddleNLP's message for the first check that fails; the task must be `check`ed."""
    prompt = _prompt(task, tokenizer, rules)
    most = _max_dec_len(task)
    if rules.strict and int(task.get("enable_text_truncate", 1)):
        prompt = _truncated(prompt, rules.max_seq_len - (most or _UNTOLD_OUTPUT), task["req_id"])
    least: int = task.get("min_dec_len", 1)
    _check_lengths(len(prompt), least, most, rules)
    if rules.blocks is not None and not rules.blocks.admits(len(prompt)):
        told = {"req_id": task["req_id"], "input_ids_len": len(prompt), "max_dec_len": most}
        raise PaddleError(REJECTED, f"The input task required resources is exceed the limit, task={told}.")
    room = rules.max_seq_len - len(prompt)
    if most is None:
        most = min(room, rules.output_limit)
    elif rules.strict:
        most = min(most, room)
    all_tokens = bool(task.get("return_all_tokens", False))
    return Prepared(
        req_id=task["req_id"],
        prompt=prompt,
        sampling=_sampling(task, most, min(least, most), rules),
        stop=_stops(task, tokenizer, rules),
        stream=task.get("stream", False),
        last_frame_only=all_tokens or rules.last_frame_only,
        return_all_tokens=all_tokens,
        return_usage=bool(task.get("return_usage", False)),
        benchmark=bool(task.get("benchmark", False)),
    )


def checked(task: Task, rules: Rules) -> None:
    """Raises PaddleError with all that the task's fields break, as a Python list in a string."""
    if problems := check(task, vocab=rules.vocab, longest=rules.max_seq_len, stops=rules.stop_sequences):
        raise PaddleError(REJECTED, str(problems))


# ---- the prompt


def _prompt(task: Task, tokenizer: Tokenizer, rules: Rules) -> list[int]:
    """input_ids as they are; else the text as one user's turn, or the messages, through the model's template."""
    if "input_ids" in task:
        ids: list[int] = task["input_ids"]
        return ids
    text, templated = _text(task, tokenizer, rules)
    longest = rules.max_seq_len * CHARACTERS_A_TOKEN
    if len(text) > longest:
        if not rules.strict:
            raise _too_long(f"more than {rules.max_seq_len}", task.get("min_dec_len", 1))
        text = text[:longest]
    try:
        prompt = tokenizer.encode(text, add_special=not templated)
    except RequestError as error:
        raise unexpected(error.message) from None
    if not prompt:
        raise unexpected("the prompt is empty; at least one token is needed")
    return prompt


def _text(task: Task, tokenizer: Tokenizer, rules: Rules) -> tuple[str, bool]:
    """The prompt's text, and whether the chat template made it (and wrote the special tokens)."""
    if "text" in task:
        if tokenizer.template is None or rules.plain_text:
            return task["text"], False
        messages = [{"role": "user", "content": task["text"]}]
    else:
        messages = task["messages"]
        if rules.system_field and "system" in task and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": task["system"]}, *messages]
        if tokenizer.template is None:
            raise unexpected("This model does not support chat_template.")
    try:
        return tokenizer.render_chat(messages), True
    except RequestError as error:
        raise unexpected(error.message) from None


def _truncated(prompt: list[int], limit: int, req_id: str | int) -> list[int]:
    """Upstream's silent cut, which loses the prompt's end; but a limit that leaves nothing cuts nothing."""
    if limit < 2 or len(prompt) <= limit:
        return prompt
    _log.warning("req_id %s: cut its prompt from %d to %d tokens", req_id, len(prompt), limit - 1)
    return prompt[: limit - 1]


# ---- limits


def _max_dec_len(task: Task) -> int | None:
    for name in ("max_dec_len", "seq_len", "max_tokens"):
        if name in task:
            value: int = task[name]
            return value
    return None


def _check_lengths(prompt: int, least: int, most: int | None, rules: Rules) -> None:
    if prompt + least >= rules.max_seq_len:
        raise _too_long(prompt, least)
    if prompt > rules.prompt_limit:
        raise PaddleError(
            REJECTED, f"Length of input token({prompt}) exceeds the limit MAX_SEQ_LEN({rules.prompt_limit})."
        )
    for name, value in (("max_dec_len", most or 0), ("min_dec_len", least)):
        if value > rules.output_limit:
            raise PaddleError(
                REJECTED, f"The parameter {name}({value}) exceeds the limit MAX_DEC_LEN({rules.output_limit})."
            )
    if most is not None and not rules.strict and prompt + most > rules.max_seq_len:
        raise PaddleError(
            REJECTED,
            f"Input text is too long, input_ids_len ({prompt}) + max_dec_len ({most}) > max_seq_len "
            f"({rules.max_seq_len})",
        )


def _too_long(prompt: int | str, least: int) -> PaddleError:
    return PaddleError(
        REJECTED, f"Input text is too long, input_ids_len ({prompt}) + min_dec_len ({least}) >= max_seq_len "
    )


# ---- sampling


def _sampling(task: Task, most: int, least: int, rules: Rules) -> SamplingParams:
    """PaddleNLP's semantics: topp 0 and temperature 0 are greedy, and no end token before min_dec_len."""
    topp = float(task["topp"] if "topp" in task else task.get("top_p", TOPP))
    temperature = float(task.get("temperature", TEMPERATURE)) if topp > 0 else 0.0
    given: Any = task.get("eos_token_ids", [])
    ends = tuple([given] if isinstance(given, int) else given)
    return SamplingParams(
        max_tokens=most,
        min_tokens=least,
        temperature=temperature,
        top_p=topp or 1.0,
        repetition_penalty=float(task.get("penalty_score", 1)),
        presence_penalty=float(task.get("presence_score", 0)),
        frequency_penalty=float(task.get("frequency_score", 0)),
        last_prompt_token_counts=True,
        seed=task.get("infer_seed") or task.get("seed") or random.getrandbits(63),
        stop_token_ids=ends + rules.end_ids,
    )


def _stops(task: Task, tokenizer: Tokenizer, rules: Rules) -> tuple[str, ...]:
    given: Any = task.get("stop_sequences", task.get("stop_seqs", []))
    stops = (given,) if isinstance(given, str) else tuple(given)
    for text in stops:
        try:
            length = len(tokenizer.encode(text, add_special=False))
        except RequestError as error:
            raise unexpected(error.message) from None
        if length > rules.stop_tokens:
            raise PaddleError(
                REJECTED, f"A sequence of `stop_sequences` has {length} tokens, and at most {rules.stop_tokens} may be"
            )
    return stops
