"""The API's own description (/openapi.json, /docs) of the endpoints that FastAPI doesn't see through."""

from typing import Any

import msgspec
from fastapi import FastAPI

from oarlock_runtime.server.http.fields import ChatFields, CompletionFields

_POSTS = (
    ("/v1/completions", CompletionFields, "Continue a prompt", ["prompt"]),
    ("/v1/chat/completions", ChatFields, "Answer a chat", ["messages"]),
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


def describe(app: FastAPI) -> None:
    """Adds the generation endpoints to `app`'s OpenAPI document, made when it is first asked for."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = own()
            kinds = [kind for _, kind, _, _ in _POSTS]
            schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
            for (path, kind, summary, required), schema in zip(_POSTS, schemas, strict=True):
                components[kind.__name__]["required"] = required
                document["paths"][path] = {"post": _operation(summary, schema)}
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _operation(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {status: {"description": meaning} for status, meaning in _STATUSES.items()},
    }
