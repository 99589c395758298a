"""The endpoints that generate: one exchange from its body to its last byte. Runs in the server processes.

Streaming and not, both wait on the dispatcher's Call; what a step brings is written at once, in one piece, and nothing
is started per token. Whatever ends the exchange (the last token, an error, the client's leaving), `end` tells the
engine.
"""

import asyncio
import logging
import time
from typing import Any

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.dispatcher import Call
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
from oarlock_runtime.server.http.replies import DONE, Replies, error_event
from oarlock_runtime.server.service import Service

_log = logging.getLogger("oarlock.server")
_LONG_BODY = 8192  # bytes; tokenizing more would hold up the other clients, so it happens in a thread


class GenerationEndpoint:
    """POST /v1/completions, or /v1/chat/completions with `chat`; an ASGI application."""

    def __init__(self, service: Service, *, chat: bool) -> None:
        self._service = service
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(self._service, scope, receive, send)
        outcome = "error"
        try:
            outcome = await exchange.run(self._chat)
        except ClientGoneError:
            outcome = "abort"
        except RequestError as error:
            outcome = str(error.status)
            await exchange.tell(error)
        except asyncio.CancelledError:
            outcome = "slow_reader"
            _log.warning("dropped a client that took nothing for %.0f s", self._service.settings.slow_reader_seconds)
            raise
        except Exception:
            _log.exception("a request failed inside the server")
            await exchange.tell(
                RequestError("", "the server failed on this request", 500, "internal_error", kind="server_error")
            )
        finally:
            exchange.close()
            self._service.metrics.count("chat" if self._chat else "completion", outcome)


class _Exchange:
    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self._scope = scope
        self._receive = receive
        self._send = send
        self._arrived = time.monotonic()
        self._call: Call | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._streaming = False

    async def run(self, chat: bool) -> str:
        """Serves the exchange; returns how it ended. Raises RequestError or ClientGoneError."""
        service, settings = self._service, self._service.settings
        service.check_open()
        body = await read_body(self._scope, self._receive, settings.body_limit, settings.request_timeout)
        generation, model = await self._prepare(body, chat)
        service.check_open()
        call = self._call = Call(
            self._arrived + settings.request_timeout, patient=not generation.stream and not generation.stop
        )
        answer = Answer(generation, service.tokenizer)
        replies = Replies(
            chat=chat,
            stream=generation.stream,
            model=model,
            fingerprint=service.fingerprint,
            with_usage=generation.with_usage,
        )
        service.dispatcher.submit(call, generation.prompts, generation.sampling)
        self._watcher = asyncio.create_task(self._watch(call))
        if generation.stream:
            await self._stream(call, answer, replies)
        else:
            await self._whole(call, answer, replies)
        service.metrics.finished(answer.reasons(), answer.completion_tokens, time.monotonic() - self._arrived)
        return "ok"

    async def _prepare(self, body: bytes, chat: bool) -> tuple[Generation, str]:
        service = self._service
        if chat:
            fields: Any = parse(body, ChatFields)
            prepare: Any = prepare_chat
        else:
            fields, prepare = parse(body, CompletionFields), prepare_completion
        model = service.model_named(fields.model)
        if len(body) < _LONG_BODY:
            return prepare(fields, service.tokenizer, service.limits), model
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, prepare, fields, service.tokenizer, service.limits), model

    async def _watch(self, call: Call) -> None:
        """Ends the call as soon as the client has left."""
        await client_left(self._receive)
        if self._call is call:
            self._service.dispatcher.end(call)
            call.fail(ClientGoneError())

    async def _take(self, call: Call, answer: Answer, replies: Replies | None) -> list[bytes]:
        """What the next step brings, as chunks of a stream (none without `replies`)."""
        events = await call.take()
        if call.prompt_scores:
            answer.add_prompt_scores(call.prompt_scores)
            call.prompt_scores = []
        chunks: list[bytes] = []
        for index, token, finish, scores in events:
            if answer.push(index, token, finish, scores, chunks, replies):
                self._service.dispatcher.end(call, index)
        return chunks

    async def _stream(self, call: Call, answer: Answer, replies: Replies) -> None:
        first = 0.0
        while not answer.complete:
            chunks = await self._take(call, answer, replies)
            if not first:
                first = time.monotonic()
                self._service.metrics.first_token(first - self._arrived, call.queue_seconds)
                self._streaming = True
                call.sending_since = first
                await self._send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            if answer.complete:
                if replies.with_usage:
                    chunks.append(replies.usage(answer.usage(call.cached_tokens)))
                chunks.append(DONE)
            if chunks:
                call.sending_since = time.monotonic()
                await self._send(
                    {"type": "http.response.body", "body": b"".join(chunks), "more_body": not answer.complete}
                )
                call.sending_since = 0.0
        self._service.metrics.token_time(first, time.monotonic(), answer.longest)

    async def _whole(self, call: Call, answer: Answer, replies: Replies) -> None:
        while not answer.complete:
            await self._take(call, answer, None)
        self._service.metrics.first_token(None, call.queue_seconds)
        body = replies.whole(answer.whole(), answer.usage(call.cached_tokens))
        call.sending_since = time.monotonic()
        await send_json(self._send, 200, body)

    async def tell(self, error: RequestError) -> None:
        """Sends an error by whatever way is left."""
        if not self._streaming:
            await send_error(self._send, error)
            return
        await self._send({"type": "http.response.body", "body": error_event(error), "more_body": False})

    def close(self) -> None:
        if self._call is not None:
            call, self._call = self._call, None
            self._service.dispatcher.end(call)
        if self._watcher is not None:
            self._watcher.cancel()
