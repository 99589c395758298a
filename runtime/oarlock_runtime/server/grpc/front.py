"""The gRPC server of one server process: its bounds, the health service, its end. Runs in the server processes."""

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.grpc.endpoint import MOST_CALLS, Endpoint
from oarlock_runtime.server.grpc.protocol.messages import SERVICE
from oarlock_runtime.server.ports import address_of
from oarlock_runtime.server.service import Service

GOODBYE_SECONDS = 1  # for answers that are on their way when the process is told to stop
_HEALTH_SECONDS = 0.25  # between two looks at whether calls are served
_OVERHEAD = 64 << 10  # of a message around a payload of the largest size
_OTHER_CALLS = 128  # probes, metadata, and calls that are being refused
_OPTIONS = {
    "grpc.so_reuseport": 1,  # the supervisor holds the port, and all server processes listen on it
    "grpc.max_metadata_size": 16 << 10,
    "grpc.keepalive_time_ms": 60_000,  # peers that are gone are noticed
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,  # clients may look for us as often
    "grpc.keepalive_permit_without_calls": 1,
}


class GrpcFront:
    """Answers from `serve` on (UNAVAILABLE while the model loads) until `stop`."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self.started = asyncio.Event()  # it listens
        self._stopping = asyncio.Event()
        options = {
            **_OPTIONS,
            "grpc.max_receive_message_length": settings.body_limit + _OVERHEAD,
            # Of one connection, beyond which its client waits; calls over the limit are told so.
            "grpc.max_concurrent_streams": MOST_CALLS + _OTHER_CALLS,
        }
        self._server = grpc.aio.server(options=list(options.items()))
        self._server.add_generic_rpc_handlers((Endpoint(service).handlers(),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def serve(self) -> None:
        """Serves until `stop`. SettingError when the port is taken."""
        settings = self._service.settings
        await self._tell_health(False)
        try:
            self._server.add_insecure_port(address_of(settings, "grpc_port"))
        except RuntimeError:
            raise SettingError(f"can't listen on port {settings.grpc_port} of {settings.host} (--grpc-port)") from None
        await self._server.start()
        self.started.set()
        watch = asyncio.create_task(self._watch_health())
        await self._stopping.wait()
        watch.cancel()
        await self._tell_health(False)
        await self._server.stop(GOODBYE_SECONDS)

    def stop(self) -> None:
        """Takes no more calls and ends those that are left: `serve` returns soon."""
        self._stopping.set()

    async def _watch_health(self) -> None:
        """Tells the health service's callers what calls would find."""
        before = False
        while True:
            if self._service.healthy is not before:
                before = self._service.healthy
                await self._tell_health(before)
            await asyncio.sleep(_HEALTH_SECONDS)

    async def _tell_health(self, serving: bool) -> None:
        told = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE.full_name):
            await self._health.set(name, told)
