"""The routes of the API, keys, and errors in OpenAI's shape. One application in each server process.

The endpoints that generate are bare ASGI applications, and calls go straight to them, so that a streamed token passes
no layer but the web server's; the small ones are ordinary FastAPI.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.http.exchange import Application, Receive, Scope, Send, send_error
from oarlock_runtime.server.http.handler import GenerationEndpoint
from oarlock_runtime.server.http.openapi import UNKNOWN_MODEL, describe
from oarlock_runtime.server.http.private import PrivateHttp
from oarlock_runtime.server.service import Service


def build_app(service: Service) -> Application:
    """The whole API over `service`."""
    app = FastAPI(title="Oarlock", version=service.version, redoc_url=None)
    completions, chat = (GenerationEndpoint(service, chat=chat) for chat in (False, True))
    generation: dict[str, Application] = {
        "/v1/completions": completions,
        "/v1/chat/completions": GenerationEndpoint(service, chat=True, private=PrivateHttp(service)),
        # The OpenAI clients of PaddleNLP's documentation have the base URL …/v1/chat/completions.
        "/v1/chat/completions/completions": completions,
        "/v1/chat/completions/chat/completions": chat,
    }
    for path, endpoint in generation.items():  # for the errors of other methods
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))

    def model_object() -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": service.model,
            "object": "model",
            "created": service.created,
            "owned_by": "oarlock",
        }
        if service.healthy:
            told["max_model_len"] = service.limits.max_context
        return told

    @app.get("/v1/chat/completions/models", include_in_schema=False)
    @app.get("/v1/models", summary="The served model")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_object()]}

    @app.get("/v1/chat/completions/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}", summary="One model by its name", responses=UNKNOWN_MODEL)
    async def model(name: str) -> dict[str, Any]:
        service.model_named(name)
        return model_object()

    @app.get("/health", summary="200 when calls are served, else 503")
    async def health() -> dict[str, str]:
        service.check_open()
        return {"status": "ok"}

    @app.get("/version", summary="Version of the server")
    async def told_version() -> dict[str, str]:
        return {"version": service.version}

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _SentError(error)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.NOT_FOUND:
            told = RequestError("", f"there is no {request.url.path[:200]!r} here", 404, "not_found")
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            message = f"{request.url.path} takes {allowed}, not {request.method}"
            return _SentError(RequestError("", message, 405, "method_not_allowed"), [(b"allow", allowed.encode())])
        else:
            told = RequestError("", str(error.detail), error.status_code)
        return _SentError(told)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _SentError(RequestError("", str(error.errors()[0]["msg"])))

    describe(app)
    return _Door(service, app, generation)


class _SentError(Response):
    """A RequestError as a response."""

    def __init__(self, error: RequestError, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        super().__init__(status_code=error.status)
        self._error = error
        self._more = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, self._error, self._more)


class _Door:
    """Lets only calls with a key through to /v1, generation by the shortest way.

    HEAD is a GET whose body the web server leaves out.
    """

    def __init__(self, service: Service, app: Application, generation: dict[str, Application]) -> None:
        self._service = service
        self._app = app
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            try:
                self._service.check_key(dict(scope["headers"]).get(b"authorization", b""))
            except RequestError as error:
                await send_error(send, error)
                return
            if scope["method"] == "POST":
                app = self._generation.get(scope["path"], app)
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the web server still sees the HEAD
        await app(scope, receive, send)
