"""The request bodies that we understand, field by field, and what becomes of OpenAI's other fields. Used by servers.

null means absent everywhere. A field is in one of three places: in a Struct below (it works, or it is a hint without
effect on the answer and is accepted), in REFUSED (it would change the answer and we can't), or nowhere (unknown:
refused).
"""

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # a hint: our chunks are not padded


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None  # a schema always holds


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    json_schema: JsonSchema | None = None


class GenerationFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions have in common."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None
    # Beyond OpenAI's API, with the names that other servers use
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    cache_salt: str | None = None
    # Hints without effect on the answer
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


class CompletionFields(GenerationFields, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of a chat. The last five come back empty when a client repeats an answer of ours."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: Any = None
    tool_calls: list[Any] | None = None


class ChatFields(GenerationFields, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prediction: dict[str, Any] | None = None  # a hint that could only make the answer faster
    chat_template_kwargs: dict[str, Any] | None = None  # further variables for the model's chat template


# OpenAI's fields that would change the answer and that we can't honour: harmless values (passed over), and why.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "only text can be generated"),
    "function_call": (("none", "auto"), "functions are not supported"),
    "functions": (([],), "functions are not supported"),
    "modalities": ((["text"],), "only text can be generated"),
    "moderation": ((), "moderation is not supported"),
    "parallel_tool_calls": ((True, False), "tools are not supported"),
    "reasoning_effort": (("none",), "the model's reasoning can't be steered"),
    "suffix": (("",), "inserting text before a suffix is not supported"),
    "tool_choice": (("none", "auto"), "tools are not supported"),
    "tools": (([],), "tools are not supported"),
    "verbosity": (("medium",), "the length of answers can't be steered"),
    "web_search_options": ((), "web search is not supported"),
}
