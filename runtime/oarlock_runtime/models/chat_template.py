"""Chat templates: messages to prompt text. Runs in the server process.

A template comes with the model, so it runs in Jinja's immutable sandbox, with the few helpers that Hugging Face's
templates use and nothing else. Whatever goes wrong in it is an error of the request's `messages`.
"""

import json
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from oarlock_runtime.errors import RequestError

MAX_PROMPT_CHARACTERS = 64 << 20


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only shows what is inside."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(Exception):
    """The template called raise_exception: the messages are not what it can render."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(str(message))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A model's template, and another one for requests with tools where the model has one.

    `constants` are what every rendering may use: bos_token, eos_token and the like.
    """

    def __init__(self, source: str, constants: dict[str, str], tool_source: str | None = None) -> None:
        self.source = source
        self.tool_source = tool_source
        self._constants = constants

    @cached_property
    def _plain(self) -> Template:
        return _environment().from_string(self.source)

    @cached_property
    def _with_tools(self) -> Template:
        return self._plain if self.tool_source is None else _environment().from_string(self.tool_source)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text. RequestError on `messages` when the template can't render them."""
        values = {
            **self._constants,
            **variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = (self._with_tools if tools else self._plain).render(values)
        except _Refused as error:
            raise RequestError("messages", f"the model's chat template refuses the messages: {error}") from error
        except TemplateError as error:
            raise RequestError("messages", f"the model's chat template can't render the messages: {error}") from error
        except Exception as error:  # a template may fail in any way that Python can
            detail = f"{type(error).__name__}: {error}"
            raise RequestError("messages", f"the model's chat template can't render the messages: {detail}") from error
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise RequestError(
                "messages", f"renders to {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are taken"
            )
        return text
