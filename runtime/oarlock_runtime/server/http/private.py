"""PaddleNLP's private dialect over HTTP: one JSON object a line, or one in all. Runs in the server processes.

It shares POST /v1/chat/completions with OpenAI's chats, so that every body there is looked at for whose it is.
"""

import asyncio
import time
from typing import Any

import msgspec

from oarlock_runtime.server.http.exchange import EVENTS, ClientGoneError, Receive, Send, client_left, send_json
from oarlock_runtime.server.json_document import CrowdedError, decode
from oarlock_runtime.server.paddle.conversation import Conversation
from oarlock_runtime.server.paddle.failure import MALFORMED, PaddleError
from oarlock_runtime.server.paddle.frames import Frame
from oarlock_runtime.server.paddle.task import PRIVATE_FIELDS, Task, task_of_body
from oarlock_runtime.server.service import Service

_encode = msgspec.json.Encoder().encode
# Reads which of these fields are there, and passes over all else without making objects of it.
_MARKS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    msgspec.defstruct(
        "Marks", [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in ("model", *sorted(PRIVATE_FIELDS))]
    )
)


class PrivateHttp:
    """The dialect's side of /v1/chat/completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def claims(self, body: bytes) -> bool:
        """Whether a body is the dialect's: it has a field of the dialect's own, or names no model. Else, and where it
        is no JSON object, it is OpenAI's; with strict_paddle every body is the dialect's."""
        if self._service.settings.strict_paddle:
            return True
        try:
            marks = _MARKS.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        model = marks.model
        if model is msgspec.UNSET or bytes(model) == b"null":
            return True
        return any(getattr(marks, name) is not msgspec.UNSET for name in PRIVATE_FIELDS)

    async def serve(self, body: bytes, arrived: float, receive: Receive, send: Send) -> str:
        """Serves a request to its end and returns how it went, for the metrics. Raises ClientGoneError."""
        with Conversation(self._service, http=True, arrived=arrived) as conversation:
            watcher = asyncio.create_task(_watch(conversation, receive))
            try:
                await _Exchange(conversation, body, send).run()
            finally:
                watcher.cancel()
        return conversation.outcome


async def _watch(conversation: Conversation, receive: Receive) -> None:
    await client_left(receive)
    conversation.call.fail(ClientGoneError())


def _read(body: bytes) -> Task:
    try:
        document = decode(body)
    except CrowdedError as error:
        raise PaddleError(MALFORMED, f"request body is not taken: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PaddleError(MALFORMED, "request body is not a valid json format") from None
    return task_of_body(document)


class _Exchange:
    def __init__(self, conversation: Conversation, body: bytes, send: Send) -> None:
        self._conversation = conversation
        self._body = body
        self._send = send
        self._started = False

    async def run(self) -> None:
        conversation = self._conversation
        error: Frame | None = None
        async for frame in conversation.answer(lambda: _read(self._body), len(self._body)):
            if conversation.streams:
                await self._write(_encode(frame) + b"\n", conversation.complete)
            elif frame["error_code"]:
                error = frame
        if conversation.streams:
            return
        conversation.call.sending_since = time.monotonic()
        assert error is not None or conversation.frames is not None
        whole = (
            conversation.frames.whole() if error is None and conversation.frames else {**(error or {}), "result": ""}
        )
        await send_json(self._send, 200, _encode(whole))

    async def _write(self, line: bytes, last: bool) -> None:
        call = self._conversation.call
        call.sending_since = time.monotonic()
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await self._send({"type": "http.response.body", "body": line, "more_body": not last})
        call.sending_since = 0.0
