"""From a request's fields to what the engine is asked: prompts as tokens, sampling, stop strings, shape of the answer.

Runs in the server processes. Everything that can be wrong with a request is found here, before anything is queued.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from oarlock_runtime.engine.grammar import ANY_OBJECT, check_schema
from oarlock_runtime.engine.sampling import MAX_TOP_LOGPROBS, SamplingParams
from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.fields import ChatFields, CompletionFields, GenerationFields, Message, ResponseFormat
from oarlock_runtime.server.http.stops import MAX_STOP_LENGTH, MAX_STOPS

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for a completion; a chat goes on to the end of the context
MAX_SALT = 256  # characters
CHARACTERS_A_TOKEN = 512  # more than any token's: a text beyond context * this can't fit, and isn't tokenized to see
_TEMPLATE_OWN = ("self", "messages", "tools", "add_generation_prompt")  # of a chat template's variables
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What this server can serve at most."""

    vocab: int
    max_context: int
    max_output_tokens: int  # 0 = up to the context
    max_n: int
    max_prompts: int
    max_choices: int  # of one call: as many as the batch and the queue hold together
    end_ids: tuple[int, ...]  # the tokenizer's end tokens, some of which the model's own configuration may not name


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
    if fields.prompt is None:
        raise RequestError("prompt", "prompt is missing")
    given = _prompts_of(fields.prompt, limits)
    prompts = [_prompt_tokens(prompt, name, tokenizer, limits) for name, prompt in given]
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
    if fields.messages is None:
        raise RequestError("messages", "messages is missing")
    if not fields.messages:
        raise RequestError("messages", "messages is empty; it must hold at least one message")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(fields.messages)]
    if sum(len(message["content"]) for message in messages) > limits.max_context * CHARACTERS_A_TOKEN:
        raise _too_long("messages", None, limits)
    text = tokenizer.render_chat(messages, **_template_variables(fields.chat_template_kwargs or {}))
    prompt = _checked(tokenizer.encode(text, add_special=False, field="messages"), "messages", limits)
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


def _template_variables(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name in _TEMPLATE_OWN:
            field_name = f"chat_template_kwargs.{name}"
            raise RequestError(field_name, f"{field_name} can't be set: it is made from the request's other fields")
    return given


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


def _prompts_of(prompt: str | list[Any], limits: Limits) -> list[tuple[str, str | list[int]]]:
    """(name, text or token ids) of each prompt in any of the four forms."""
    if isinstance(prompt, str):
        return [("prompt", prompt)]
    if not prompt:
        raise RequestError("prompt", "prompt is an empty list; give a text, token ids, or a list of either")
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise RequestError("prompt", "prompt mixes texts, token ids and lists; all its items must be of one kind")
    if kinds == {int}:
        return [("prompt", prompt)]
    if len(prompt) > limits.max_prompts:
        raise RequestError("prompt", f"prompt holds {len(prompt)} prompts; at most {limits.max_prompts} are allowed")
    return [(f"prompt[{index}]", item) for index, item in enumerate(prompt)]


def _prompt_tokens(prompt: str | list[int], name: str, tokenizer: Tokenizer, limits: Limits) -> list[int]:
    if isinstance(prompt, str):
        if len(prompt) > limits.max_context * CHARACTERS_A_TOKEN:
            raise _too_long(name, None, limits)
        return _checked(tokenizer.encode(prompt, add_special=True, field=name), name, limits)
    if prompt and not 0 <= min(prompt) <= max(prompt) < limits.vocab:
        bad = next(token for token in prompt if not 0 <= token < limits.vocab)
        raise RequestError(name, f"{name} holds the token id {bad}; ids must be from 0 to {limits.vocab - 1}")
    return _checked(prompt, name, limits)


def _checked(tokens: list[int], name: str, limits: Limits) -> list[int]:
    if not tokens:
        raise RequestError(name, f"{name} is empty; at least one token is needed")
    if len(tokens) >= limits.max_context:
        raise _too_long(name, len(tokens), limits)
    return tokens


def _too_long(name: str, tokens: int | None, limits: Limits) -> RequestError:
    length = "far more tokens than fit" if tokens is None else f"{tokens} tokens"
    return RequestError(
        name,
        f"{name} is {length}; the context is {limits.max_context} tokens, prompt and answer together",
        code="context_length_exceeded",
    )


def _alternatives(name: str, count: int) -> int:
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise RequestError(name, f"{name} is {count}; it must be from 0 to {MAX_TOP_LOGPROBS}")
    return count


def _message(message: Message, name: str) -> dict[str, str]:
    for field_name in ("audio", "function_call", "tool_calls"):
        if getattr(message, field_name):
            raise RequestError(
                f"{name}.{field_name}", f"{name}.{field_name} is not supported", code="unsupported_parameter"
            )
    if message.role not in _ROLES:
        raise RequestError(f"{name}.role", f"{name}.role is {message.role!r}; it must be one of {', '.join(_ROLES)}")
    content = message.content
    if content is None:
        content = message.refusal
    if content is None:
        raise RequestError(f"{name}.content", f"{name}.content is missing")
    if not isinstance(content, str):
        for index, part in enumerate(content):
            if part.type != "text" or part.text is None:
                place = f"{name}.content[{index}]"
                raise RequestError(
                    place, f"{place} is of type {part.type!r}; only {{'type': 'text', 'text': …}} is supported"
                )
        content = "\n".join(part.text or "" for part in content)
    told = {"role": _ROLES[message.role], "content": content}
    return told if message.name is None else {**told, "name": message.name}


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
