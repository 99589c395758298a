"""ModelInfer and ModelStreamInfer: PaddleNLP's private dialect inside KServe's tensors. Runs in the server processes.

A stream carries many requests at once: each is a task of its own, and their answers come as they are made. What a
client does not take holds up its own stream alone, up to the slow reader's limit; a stream that ends, for whatever
reason, ends its requests.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import grpc
import msgspec
from google.protobuf.message import DecodeError

from oarlock_runtime.server.calls import SLOW_READER
from oarlock_runtime.server.grpc.description import VERSION, Statistics, check_model
from oarlock_runtime.server.grpc.protocol.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from oarlock_runtime.server.grpc.tensors import ProtocolError, read_input, response
from oarlock_runtime.server.grpc.writer import SlowReaderError, Writer
from oarlock_runtime.server.paddle.conversation import Conversation
from oarlock_runtime.server.paddle.frames import Frame
from oarlock_runtime.server.paddle.task import Task, task_of_payload
from oarlock_runtime.server.service import Service

Context = grpc.aio.ServicerContext[bytes, bytes]

_encode = msgspec.json.Encoder().encode


class Inference:
    """Answers requests in the private dialect."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.statistics = Statistics()

    async def whole(self, request: ModelInferRequest) -> ModelInferResponse:
        """The answer to ModelInfer: the last frame alone, which has the whole text. ProtocolError."""
        payload = self.payload(request)
        answer = ModelInferResponse()
        with self.conversation() as conversation:
            async for frame in conversation.answer(lambda: _of_one_frame(payload), len(payload)):
                answer = _response(request, frame)
        return answer

    async def stream(self, context: Context) -> None:
        """Serves one ModelStreamInfer to its end. SlowReaderError."""
        await _Stream(self, self._service, context).run()

    def payload(self, request: ModelInferRequest) -> bytes:
        """The JSON text of a request. ProtocolError when it is not for our model, or its tensors are wrong."""
        check_model(self._service, request.model_name, request.model_version)
        return read_input(request)

    @contextlib.contextmanager
    def conversation(self) -> Iterator[Conversation]:
        """One request's conversation, counted when it ends."""
        conversation = Conversation(self._service, http=False)
        try:
            yield conversation
        finally:
            conversation.close()
            self._service.metrics.count("grpc", conversation.outcome)
            seconds = time.monotonic() - conversation.arrived
            self.statistics.count(seconds, success=conversation.outcome == "200")


class _Stream:
    """One ModelStreamInfer."""

    def __init__(self, inference: Inference, service: Service, context: Context) -> None:
        self._inference = inference
        self._context = context
        self._writer = Writer(context, service.settings.slow_reader_seconds)
        # As many as the engine and its queue hold, and one more that is told so.
        self._room = asyncio.Semaphore(service.settings.max_sequences + service.settings.queue_limit + 1)

    async def run(self) -> None:
        try:
            async with self._writer, asyncio.TaskGroup() as tasks:
                while True:
                    await self._room.acquire()  # what there is no room for stays with the client
                    data: Any = await self._context.read()
                    if data is grpc.aio.EOF:
                        break
                    tasks.create_task(self._serve(data))
        except* SlowReaderError:
            raise SlowReaderError from None

    async def _serve(self, data: bytes) -> None:
        """One request of the stream, to its last frame."""
        request = ModelInferRequest()
        try:
            request.MergeFromString(data)
            await self._answer(request, self._inference.payload(request))
        except DecodeError:
            await self._refuse(request, "the bytes are no ModelInferRequest")
        except ProtocolError as error:
            await self._refuse(request, error.message)
        except asyncio.CancelledError as error:
            if error.args != (SLOW_READER,):
                raise
            raise SlowReaderError from None
        finally:
            self._room.release()

    async def _answer(self, request: ModelInferRequest, payload: bytes) -> None:
        del request.inputs[:], request.raw_input_contents[:]  # they may be large, and the answer may take long
        size = len(payload)
        with self._inference.conversation() as conversation:
            call = conversation.call
            async for frame in conversation.answer(lambda: task_of_payload(payload), size):
                call.sending_since = time.monotonic()
                await self._write(ModelStreamInferResponse(infer_response=_response(request, frame)))
                call.sending_since = 0.0

    async def _refuse(self, request: ModelInferRequest, message: str) -> None:
        answer = ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
        await self._write(ModelStreamInferResponse(error_message=message, infer_response=answer))

    async def _write(self, message: ModelStreamInferResponse) -> None:
        await self._writer.put(message.SerializeToString())


def _of_one_frame(payload: bytes) -> Task:
    return {**task_of_payload(payload), "return_all_tokens": True}


def _response(request: ModelInferRequest, frame: Frame) -> ModelInferResponse:
    """A frame as `OUT`: in a list of one, or bare when it is an error."""
    failed = bool(frame.get("error_code"))
    element = _encode(frame if failed else [frame])
    return response(request, element, VERSION, final=failed or bool(frame["is_end"]))
