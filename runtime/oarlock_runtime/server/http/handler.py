"""The endpoints that generate: one exchange from its body to its last byte. Runs in the server processes.

What a step brings is written at once, in one piece, and nothing is started per token. Whatever ends the exchange (the
last token, an error, the client's leaving), closing its call tells the engine.
"""

import asyncio
import logging
import time
from typing import Any

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.calls import SLOW_READER, Call
from oarlock_runtime.server.http.answer import Answer
from oarlock_runtime.server.http.body import parse
from oarlock_runtime.server.http.exchange import (
    EVENTS,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    client_left,
    read_body,
    send_error,
    send_json,
)
from oarlock_runtime.server.http.fields import ChatFields, CompletionFields
from oarlock_runtime.server.http.generation import Generation, prepare_chat, prepare_completion
from oarlock_runtime.server.http.private import PrivateHttp
from oarlock_runtime.server.http.replies import DONE, Replies, error_event
from oarlock_runtime.server.service import Service

_log = logging.getLogger("oarlock.server")
_LONG_BODY = 8192  # bytes; tokenizing more would hold up the other clients, so it happens in a thread


class GenerationEndpoint:
    """POST of completions, or of chats with `chat`; an ASGI application. Bodies that `private` claims are its own."""

    def __init__(self, service: Service, *, chat: bool, private: PrivateHttp | None = None) -> None:
        self._service = service
        self._chat = chat
        self._private = private
        self._name = "chat" if chat else "completions"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(self._service, scope, receive, send)
        name, outcome = self._name, "500"
        try:
            body = await exchange.read()
            if self._private is not None and self._private.claims(body):
                name = "private_http"
                outcome = await self._private.serve(body, exchange.arrived, receive, send)
            else:
                await exchange.run(body, self._chat)
                outcome = "200"
        except ClientGoneError:
            outcome = "client_gone"
        except RequestError as error:
            outcome = str(error.status)
            await exchange.tell(error)
        except asyncio.CancelledError as error:
            if error.args != (SLOW_READER,):
                raise
            outcome = "slow_reader"
            _log.warning("dropped a client that did not take its answer in time")
        except Exception:
            _log.exception("a request failed inside the server")
            await exchange.tell(
                RequestError("", "the server failed on this request", 500, "internal_error", kind="server_error")
            )
        finally:
            exchange.close()
            self._service.metrics.count(name, outcome)
            if self._service.settings.access_log:
                _log.info("%s %s %s in %.3f s", scope.get("client"), scope["path"], outcome, exchange.age())


class _Exchange:
    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self._scope = scope
        self._receive = receive
        self._send = send
        self.arrived = time.monotonic()
        self._call: Call | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._streaming = False

    def age(self) -> float:
        return time.monotonic() - self.arrived

    async def read(self) -> bytes:
        """The body. Raises RequestError or ClientGoneError."""
        settings = self._service.settings
        return await read_body(self._scope, self._receive, settings.body_limit, settings.request_timeout)

    async def run(self, body: bytes, chat: bool) -> None:
        """Serves the exchange to its end. Raises RequestError or ClientGoneError."""
        service, settings = self._service, self._service.settings
        service.check_open()
        call = self._call = service.calls.open(self.arrived + settings.request_timeout)
        generation, model = await self._prepare(body, chat)
        service.check_open()
        replies = Replies(
            chat=chat,
            stream=generation.stream,
            model=model,
            fingerprint=service.fingerprint,
            with_usage=generation.with_usage,
        )
        answer = Answer(generation, service.tokenizer, replies if generation.stream else None)
        self._watcher = asyncio.create_task(self._watch(call))
        await call.start(service.client, generation.prompts, generation.sampling, generation.cache_salt)
        if generation.stream:
            await self._stream(call, answer, replies)
        else:
            await self._whole(call, answer, replies)
        service.metrics.finished(answer.reasons(), answer.tokens, self.age(), answer.queue_seconds)

    async def _prepare(self, body: bytes, chat: bool) -> tuple[Generation, str]:
        service = self._service
        fields: Any = parse(body, ChatFields if chat else CompletionFields)
        prepare: Any = prepare_chat if chat else prepare_completion
        model = service.model_named(fields.model)
        if len(body) < _LONG_BODY:
            return prepare(fields, service.tokenizer, service.limits), model
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, prepare, fields, service.tokenizer, service.limits), model

    async def _watch(self, call: Call) -> None:
        """Ends the call as soon as the client has left."""
        await client_left(self._receive)
        call.fail(ClientGoneError())

    async def _stream(self, call: Call, answer: Answer, replies: Replies) -> None:
        first = 0.0
        while not answer.complete:
            out: list[bytes] = []
            for index, chunk in await call.take():
                if answer.push(index, chunk, out):
                    call.end(index)
            if answer.complete:
                if replies.with_usage:
                    out.append(replies.usage(answer.usage()))
                out.append(DONE)
            if not out:
                continue
            call.sending_since = time.monotonic()
            if not first:
                first = call.sending_since
                self._service.metrics.first_token(first - self.arrived)
                self._streaming = True
                await self._send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            body = out[0] if len(out) == 1 else b"".join(out)
            await self._send({"type": "http.response.body", "body": body, "more_body": not answer.complete})
            call.sending_since = 0.0
        self._service.metrics.token_time(first, time.monotonic(), answer.longest)

    async def _whole(self, call: Call, answer: Answer, replies: Replies) -> None:
        while not answer.complete:
            for index, chunk in await call.take():
                if answer.push(index, chunk, []):
                    call.end(index)
        call.sending_since = time.monotonic()
        await send_json(self._send, 200, replies.whole(answer.whole(), answer.usage()))

    async def tell(self, error: RequestError) -> None:
        """Sends an error by whatever way is left."""
        if not self._streaming:
            await send_error(self._send, error)
            return
        await self._send({"type": "http.response.body", "body": error_event(error), "more_body": False})

    def close(self) -> None:
        if self._call is not None:
            self._service.calls.close(self._call)
        if self._watcher is not None:
            self._watcher.cancel()
