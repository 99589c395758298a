"""The prompts of a request as tokens: a completion's texts or token ids, a chat's messages through the template.

Runs in the server processes. RequestError names the field at fault.
"""

from typing import Any

from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.fields import ChatFields, Message
from oarlock_runtime.server.limits import CHARACTERS_A_TOKEN, Limits

_TEMPLATE_OWN = ("self", "messages", "tools", "add_generation_prompt")  # of a chat template's variables
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def prompts_of(prompt: str | list[Any] | None, limits: Limits) -> list[tuple[str, str | list[int]]]:
    """(name, text or token ids) of each prompt of a completion, in any of the four forms."""
    if prompt is None:
        raise RequestError("prompt", "prompt is missing")
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


def prompt_tokens(prompt: str | list[int], name: str, tokenizer: Tokenizer, limits: Limits) -> list[int]:
    if isinstance(prompt, str):
        if len(prompt) > limits.max_context * CHARACTERS_A_TOKEN:
            raise _too_long(name, None, limits)
        return _checked(tokenizer.encode(prompt, add_special=True, field=name), name, limits)
    if prompt and not 0 <= min(prompt) <= max(prompt) < limits.vocab:
        bad = next(token for token in prompt if not 0 <= token < limits.vocab)
        raise RequestError(name, f"{name} holds the token id {bad}; ids must be from 0 to {limits.vocab - 1}")
    return _checked(prompt, name, limits)


def chat_tokens(fields: ChatFields, tokenizer: Tokenizer, limits: Limits) -> list[int]:
    """The messages of a chat through the model's own template, as tokens."""
    if fields.messages is None:
        raise RequestError("messages", "messages is missing")
    if not fields.messages:
        raise RequestError("messages", "messages is empty; it must hold at least one message")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(fields.messages)]
    if sum(len(message["content"]) for message in messages) > limits.max_context * CHARACTERS_A_TOKEN:
        raise _too_long("messages", None, limits)
    text = tokenizer.render_chat(messages, **_template_variables(fields.chat_template_kwargs or {}))
    return _checked(tokenizer.encode(text, add_special=False, field="messages"), "messages", limits)


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


def _template_variables(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name in _TEMPLATE_OWN:
            field_name = f"chat_template_kwargs.{name}"
            raise RequestError(field_name, f"{field_name} can't be set: it is made from the request's other fields")
    return given


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
