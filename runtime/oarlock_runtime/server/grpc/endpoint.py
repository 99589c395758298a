"""The calls of inference.GRPCInferenceService. Runs in the server processes.

Messages are parsed here and not by gRPC, so that a call whose bytes are no message is answered like any other.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.grpc.description import check_model, model_config, model_metadata, server_metadata
from oarlock_runtime.server.grpc.infer import Context, Inference
from oarlock_runtime.server.grpc.protocol.messages import (
    SERVICE,
    ModelConfigRequest,
    ModelConfigResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from oarlock_runtime.server.grpc.tensors import ProtocolError
from oarlock_runtime.server.grpc.writer import SlowReaderError
from oarlock_runtime.server.service import Service

Answer = TypeVar("Answer")

_log = logging.getLogger("oarlock.server")
_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
MOST_CALLS = 1024  # inference calls at once in a server process, a stream counting once
_INFERENCE = ("ModelInfer", "ModelStreamInfer")
_OPEN = ("ServerLive", "ServerReady", "ModelReady")  # to those without a key too: what probes ask


class Endpoint:
    """All calls over one Service; `handlers` is what a gRPC server is given."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._inference = Inference(service)
        self._infers = 0  # inference calls that are open, a stream counting once

    def handlers(self) -> grpc.GenericRpcHandler:
        unary: dict[str, Callable[[Any], Awaitable[Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._model_infer,
        }
        found: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, call)) for name, call in unary.items()
        }
        found["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE.full_name, found)

    # ---- the calls

    async def _server_live(self, request: ServerLiveRequest) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def _server_ready(self, request: ServerReadyRequest) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self._service.healthy)

    async def _model_ready(self, request: ModelReadyRequest) -> ModelReadyResponse:
        check_model(self._service, request.name, request.version)
        return ModelReadyResponse(ready=self._service.healthy)

    async def _server_metadata(self, request: ServerMetadataRequest) -> ServerMetadataResponse:
        return server_metadata(self._service)

    async def _model_metadata(self, request: ModelMetadataRequest) -> ModelMetadataResponse:
        check_model(self._service, request.name, request.version)
        return model_metadata(request.name)

    async def _model_config(self, request: ModelConfigRequest) -> ModelConfigResponse:
        check_model(self._service, request.name, request.version)
        return ModelConfigResponse(config=model_config(request.name))

    async def _model_statistics(self, request: ModelStatisticsRequest) -> ModelStatisticsResponse:
        name = request.name or "model"  # without a name: of all models
        check_model(self._service, name, request.version)
        return ModelStatisticsResponse(model_stats=[self._inference.statistics.told(name)])

    async def _model_infer(self, request: ModelInferRequest) -> ModelInferResponse:
        return await self._inference.whole(request)

    # ---- around them

    def _unary(self, name: str, call: Callable[[Any], Awaitable[Message]]) -> Callable[[bytes, Context], Any]:
        kind: Any = GetMessageClass(SERVICE.methods_by_name[name].input_type)

        async def handle(data: bytes, context: Context) -> bytes:
            async def answer() -> bytes:
                request = kind()
                request.MergeFromString(data)
                return (await call(request)).SerializeToString()

            return await self._guarded(name, context, answer)

        return handle

    async def _stream(self, _: Any, context: Context) -> None:
        await self._guarded("ModelStreamInfer", context, lambda: self._inference.stream(context))

    async def _guarded(self, name: str, context: Context, answer: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, or the gRPC status of what is wrong with the call as a whole."""
        counts = name in _INFERENCE
        try:
            if name not in _OPEN:
                self._check_key(context)
            if counts:
                self._check_room()
                self._infers += 1
            try:
                return await answer()
            finally:
                self._infers -= counts
        except DecodeError:
            status, message = grpc.StatusCode.INVALID_ARGUMENT, f"the bytes are no {name}Request"
        except ProtocolError as error:
            status, message = error.status, error.message
        except RequestError as error:
            status, message = _STATUS.get(error.status, grpc.StatusCode.INTERNAL), error.message
        except SlowReaderError:
            _log.warning("dropped a gRPC client that did not take its answers in time")
            status, message = grpc.StatusCode.RESOURCE_EXHAUSTED, "the answers were not taken in time"
        except Exception:
            _log.exception("a gRPC call failed inside the server")
            status, message = grpc.StatusCode.INTERNAL, "the server failed on this call"
        await context.abort(status, message)

    def _check_key(self, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        key = metadata.get("authorization", "")
        self._service.check_key(key if isinstance(key, bytes) else key.encode())

    def _check_room(self) -> None:
        if self._infers >= MOST_CALLS:
            message = f"the server is at its limit of {MOST_CALLS} inference calls and streams at once"
            raise RequestError("", message, 429, "too_many_calls")
