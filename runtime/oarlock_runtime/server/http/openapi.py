"""The API's own description (/openapi.json, /docs) of the endpoints that FastAPI doesn't see through."""

from typing import Any

import msgspec
from fastapi import FastAPI

from oarlock_runtime.engine.sampling import MAX_TOP_LOGPROBS
from oarlock_runtime.server.http.fields import ChatFields, CompletionFields
from oarlock_runtime.server.paddle.description import SCHEMA

_POSTS = (
    ("/v1/completions", CompletionFields, "Continue a prompt", ["prompt"]),
    ("/v1/chat/completions", ChatFields, "Answer a chat", ["model", "messages"]),
)
_STATUSES = {
    "200": "The answer, whole or (with stream) as server-sent events",
    "400": "A field is wrong; the error names it",
    "401": "The API key is missing or wrong",
    "404": "The model does not exist",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is compressed",
    "429": "The queue is full; try again after Retry-After seconds",
    "500": "The server failed on this request",
    "503": "The server is loading or shutting down",
    "504": "The request took too long",
}


UNKNOWN_MODEL: dict[int | str, dict[str, Any]] = {404: {"description": _STATUSES["404"]}}
# What the fields' types don't say. generation.py and SamplingParams.validate enforce it; a test compares.
BOUNDS: dict[str, dict[str, float]] = {
    "temperature": {"minimum": 0, "maximum": 100},
    "top_p": {"minimum": 0, "maximum": 1},
    "top_k": {"minimum": -1, "maximum": (1 << 31) - 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "repetition_penalty": {"exclusiveMinimum": 0, "maximum": 100},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "seed": {"minimum": -(1 << 63), "maximum": (1 << 64) - 1},
    "min_tokens": {"minimum": 0},
    "max_completion_tokens": {"minimum": 1},
    "top_logprobs": {"minimum": 0, "maximum": MAX_TOP_LOGPROBS},
    "n": {"minimum": 1},
    "best_of": {"minimum": 1},
}


def describe(app: FastAPI) -> None:
    """Adds the generation endpoints to `app`'s OpenAPI document, made when it is first asked for."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = own()
            kinds = [kind for _, kind, _, _ in _POSTS]
            schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
            for (path, kind, summary, required), schema in zip(_POSTS, schemas, strict=True):
                _complete(components[kind.__name__], required)
                document["paths"][path] = {"post": _operation(summary, schema)}
            chat = document["paths"]["/v1/chat/completions"]["post"]
            chat["summary"] = "Answer a chat, or a request in PaddleNLP's dialect"
            content = chat["requestBody"]["content"]["application/json"]
            content["schema"] = {"anyOf": [content["schema"], {"$ref": "#/components/schemas/PaddleFields"}]}
            components["PaddleFields"] = SCHEMA
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _complete(schema: dict[str, Any], required: list[str]) -> None:
    """Adds what must be there, and the bounds of numbers."""
    fields = schema["properties"]
    schema["required"] = required
    for name in required:
        fields[name]["anyOf"] = [kind for kind in fields[name]["anyOf"] if kind != {"type": "null"}]
        del fields[name]["default"]
    for name, bounds in BOUNDS.items():
        for kind in fields.get(name, {}).get("anyOf", ()):
            if kind["type"] != "null":
                kind.update(bounds)
    for kind in fields["max_tokens"]["anyOf"] + fields.get("logprobs", {}).get("anyOf", []):
        if kind["type"] == "integer":
            kind["minimum"] = 0


def _operation(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {status: {"description": meaning} for status, meaning in _STATUSES.items()},
    }
