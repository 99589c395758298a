"""From a request's fields to what the engine is asked: its prompts' tokens, sampling, stop strings, the answer's shape.

Runs in the server processes. Everything that can be wrong with a request is found here, before anything is queued.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from oarlock_runtime.engine.grammar import ANY_OBJECT, check_schema
from oarlock_runtime.engine.sampling import MAX_TOP_LOGPROBS, SamplingParams
from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.fields import ChatFields, CompletionFields, GenerationFields, ResponseFormat
from oarlock_runtime.server.http.prompts import chat_tokens, prompt_tokens, prompts_of
from oarlock_runtime.server.http.stops import MAX_STOP_LENGTH, MAX_STOPS
from oarlock_runtime.server.limits import Limits

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for a completion; a chat goes on to the end of the context
MAX_SALT = 256  # characters
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "ignore_eos",
    "min_tokens",
)


@dataclass(slots=True)
class Generation:
    """One call, ready for the engine: choice i continues prompt i // n."""

    chat: bool
    prompts: list[list[int]]
    sampling: list[SamplingParams]  # one a choice
    n: int
    stop: tuple[str, ...]
    stream: bool
    with_usage: bool
    logprobs: int = -1  # alternatives shown with each token; -1 = no log-probabilities
    echo: list[str] = field(default_factory=list)  # the prompts' texts, when they are to be repeated
    cache_salt: str = ""  # the prompts share cached blocks only with prompts of the same salt


def prepare_completion(fields: CompletionFields, tokenizer: Tokenizer, limits: Limits) -> Generation:
    """Checks and tokenizes; RequestError names the field at fault. May take long for a long prompt."""
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise RequestError(
            "best_of", f"best_of is {fields.best_of}; only best_of equal to n is supported", code="unsupported_value"
        )
    given = prompts_of(fields.prompt, limits)
    prompts = [prompt_tokens(prompt, name, tokenizer, limits) for name, prompt in given]
    logprobs = -1 if fields.logprobs is None else _alternatives("logprobs", fields.logprobs)
    echo = bool(fields.echo)
    sampling = _sampling(
        fields,
        prompts,
        limits,
        COMPLETION_TOKENS if fields.max_tokens is None else fields.max_tokens,
        "max_tokens",
        top_logprobs=logprobs,
        prompt_logprobs=logprobs if echo else -1,
    )
    texts = [text if isinstance(text, str) else tokenizer.decode(text, start=True) for _, text in given] if echo else []
    return _generation(fields, False, prompts, sampling, logprobs, texts)


def prepare_chat(fields: ChatFields, tokenizer: Tokenizer, limits: Limits) -> Generation:
    """The same for a chat: its messages go through the model's own template."""
    prompt = chat_tokens(fields, tokenizer, limits)
    logprobs = -1
    if fields.top_logprobs is not None and not fields.logprobs:
        raise RequestError("top_logprobs", "top_logprobs needs logprobs to be true")
    if fields.logprobs:
        logprobs = _alternatives("top_logprobs", fields.top_logprobs or 0)
    name = "max_completion_tokens" if fields.max_completion_tokens is not None else "max_tokens"
    wanted = fields.max_completion_tokens if fields.max_completion_tokens is not None else fields.max_tokens
    if wanted is not None and wanted < 1:
        raise RequestError(name, f"{name} is {wanted}; it must be at least 1")
    sampling = _sampling(fields, [prompt], limits, wanted, name, top_logprobs=logprobs)
    return _generation(fields, True, [prompt], sampling, logprobs, [])


def _generation(
    fields: GenerationFields,
    chat: bool,
    prompts: list[list[int]],
    sampling: list[SamplingParams],
    logprobs: int,
    echo: list[str],
) -> Generation:
    options = fields.stream_options
    if options is not None and not fields.stream:
        raise RequestError("stream_options", "stream_options needs stream to be true")
    return Generation(
        chat=chat,
        prompts=prompts,
        sampling=sampling,
        n=fields.n or 1,
        stop=_stops(fields.stop),
        stream=bool(fields.stream),
        with_usage=options is not None and bool(options.include_usage),
        logprobs=logprobs,
        echo=echo,
        cache_salt=_cache_salt(fields.cache_salt or ""),
    )


def _alternatives(name: str, count: int) -> int:
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise RequestError(name, f"{name} is {count}; it must be from 0 to {MAX_TOP_LOGPROBS}")
    return count


def _cache_salt(salt: str) -> str:
    if len(salt) > MAX_SALT:
        raise RequestError("cache_salt", f"cache_salt is {len(salt)} characters long; at most {MAX_SALT} are allowed")
    return salt


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise RequestError("stop", f"stop holds {len(stops)} strings; at most {MAX_STOPS} are allowed")
    for index, text in enumerate(stops):
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise RequestError(
                "stop", f"stop[{index}] is {len(text)} characters long; it must be from 1 to {MAX_STOP_LENGTH}"
            )
    return stops


def _sampling(
    fields: GenerationFields,
    prompts: list[list[int]],
    limits: Limits,
    wanted: int | None,
    name: str,
    **more: Any,
) -> list[SamplingParams]:
    """One SamplingParams a choice; `wanted` tokens (None: as many as fit), which the client calls `name`."""
    n = 1 if fields.n is None else fields.n
    if not 1 <= n <= limits.max_n:
        raise RequestError("n", f"n is {n}; it must be from 1 to {limits.max_n}")
    if n * len(prompts) > limits.max_choices:
        raise RequestError(
            "n" if len(prompts) == 1 else "prompt",
            f"{len(prompts)} prompts with n={n} are {n * len(prompts)} answers at once; this server runs and queues "
            f"{limits.max_choices}",
        )
    given: dict[str, Any] = {key: value for key in _SAMPLING if (value := getattr(fields, key)) is not None}
    if given.get("top_p") == 0:  # of the most likely tokens, no more than the first
        given |= {"top_p": 1.0, "temperature": 0.0}
    if fields.response_format is not None:
        given["json_schema"] = _json_schema(fields, fields.response_format)
    stops = tuple(fields.stop_token_ids or ())
    given["stop_token_ids"] = stops if fields.ignore_eos else stops + limits.end_ids
    if wanted is not None and limits.max_output_tokens and wanted > limits.max_output_tokens:
        raise RequestError(name, f"{name} is {wanted}; at most {limits.max_output_tokens} are allowed")
    params = []
    for prompt in prompts:
        room = limits.max_context - len(prompt)
        if wanted is not None and wanted > room:
            raise RequestError(
                name,
                f"{name} is {wanted}, but with a prompt of {len(prompt)} tokens only {room} fit into the context of "
                f"{limits.max_context}",
                code="context_length_exceeded",
            )
        most = min(room, limits.max_output_tokens or room)
        one = SamplingParams(max_tokens=most if wanted is None else wanted, **given, **more)
        one.validate(limits.vocab)
        params.append(one)
    if n == 1:
        return params
    return [_reseeded(one, index) for one in params for index in range(n)]


def _json_schema(fields: GenerationFields, wanted: ResponseFormat) -> str | None:
    """The schema that the answer follows; None for text."""
    if wanted.type == "text":
        return None
    if wanted.type not in ("json_object", "json_schema"):
        name = "response_format.type"
        raise RequestError(name, f"{name} is {wanted.type!r}; it must be one of text, json_object, json_schema")
    for name in ("ignore_eos", "min_tokens"):
        if getattr(fields, name):
            raise RequestError(name, f"{name} can't be had with a response_format: its end is the answer's end")
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise RequestError("response_format.json_schema.schema", "response_format.json_schema.schema is missing")
    schema = msgspec.json.encode(wanted.json_schema.schema).decode()
    check_schema(schema)
    return schema


def _reseeded(params: SamplingParams, index: int) -> SamplingParams:
    """Choice `index` of a seeded request draws from a seed of its own, the same each time."""
    if params.seed is None or index == 0:
        return params
    seed = params.seed + index
    return msgspec.structs.replace(params, seed=seed if seed < 1 << 64 else seed - (1 << 64))
