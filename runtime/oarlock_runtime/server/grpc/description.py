"""What the server tells about itself and its model over gRPC: metadata, configuration, statistics. Server processes."""

import time
from dataclasses import dataclass

import grpc

from oarlock_runtime.server.grpc.protocol.messages import (
    TYPE_STRING,
    InferStatistics,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelMetadataResponse,
    ModelOutput,
    ModelStatistics,
    ModelTransactionPolicy,
    ServerMetadataResponse,
    StatisticDuration,
)
from oarlock_runtime.server.grpc.tensors import INPUT, OUTPUT, SHAPE, ProtocolError, tensor_metadata
from oarlock_runtime.server.service import Service

MODEL, VERSION = "model", "1"  # as PaddleNLP's clients ask for it
_EXTENSIONS = ("model_configuration", "statistics")


def check_model(service: Service, name: str, version: str) -> None:
    """ProtocolError NOT_FOUND unless it is the one model: `model`, `default` or its served name, in version 1."""
    if name not in (MODEL, "default", service.model):
        raise ProtocolError(f"Request for unknown model: {name[:200]!r} is not found", grpc.StatusCode.NOT_FOUND)
    if version not in ("", VERSION):
        raise ProtocolError(
            f"Request for unknown model: {name[:200]!r} version {version[:20]} is not found", grpc.StatusCode.NOT_FOUND
        )


def server_metadata(service: Service) -> ServerMetadataResponse:
    return ServerMetadataResponse(name="oarlock", version=service.version, extensions=_EXTENSIONS)


def model_metadata(name: str) -> ModelMetadataResponse:
    return ModelMetadataResponse(
        name=name,
        versions=[VERSION],
        platform="oarlock",
        inputs=[tensor_metadata(INPUT)],
        outputs=[tensor_metadata(OUTPUT)],
    )


def model_config(name: str) -> ModelConfig:
    return ModelConfig(
        name=name,
        backend="oarlock",
        max_batch_size=0,
        input=[ModelInput(name=INPUT, data_type=TYPE_STRING, dims=SHAPE)],
        output=[ModelOutput(name=OUTPUT, data_type=TYPE_STRING, dims=SHAPE)],
        instance_group=[ModelInstanceGroup(name=f"{MODEL}_0", count=1, kind=ModelInstanceGroup.KIND_CPU)],
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
    )


@dataclass
class Statistics:
    """Counts of this process's gRPC requests; times in nanoseconds."""

    succeeded: int = 0
    failed: int = 0
    success_ns: int = 0
    fail_ns: int = 0
    last_ms: int = 0  # when a request last ended, in Unix time

    def count(self, seconds: float, *, success: bool) -> None:
        """A request ended after `seconds`."""
        self.last_ms = int(time.time() * 1000)
        if success:
            self.succeeded += 1
            self.success_ns += int(seconds * 1e9)
        else:
            self.failed += 1
            self.fail_ns += int(seconds * 1e9)

    def told(self, name: str) -> ModelStatistics:
        success = StatisticDuration(count=self.succeeded, ns=self.success_ns)
        return ModelStatistics(
            name=name,
            version=VERSION,
            last_inference=self.last_ms,
            inference_count=self.succeeded,
            execution_count=self.succeeded,
            inference_stats=InferStatistics(
                success=success, fail=StatisticDuration(count=self.failed, ns=self.fail_ns), compute_infer=success
            ),
        )
