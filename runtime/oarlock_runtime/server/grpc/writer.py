"""What a stream's requests have to say, written one after the other. Runs in the server processes.

gRPC takes one message at a time, and one that is on its way can't be taken back: cancelling the task that waits for it
would leave the call unfit for anything else. So requests, which may be cancelled, hand their messages to a task that
isn't, and wait while too many stand before them.
"""

import asyncio
import logging
from types import TracebackType
from typing import Self

import grpc

_AHEAD = 16  # messages that may wait behind the one on its way, so that what a step brings is handed over at once
_log = logging.getLogger("oarlock.server")


class SlowReaderError(Exception):
    """The client has taken nothing for too long; its stream is given up."""


class Writer:
    """Writes to one call's client. Leaving it waits until the client has taken what is on its way."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes], patience: float) -> None:
        self._context = context
        self._patience = patience
        self._next: asyncio.Queue[bytes] = asyncio.Queue(_AHEAD)

    async def put(self, message: bytes) -> None:
        """Hands over a message. SlowReaderError when it isn't taken within the slow reader's limit."""
        if not self._next.full():
            self._next.put_nowait(message)
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._next.put(message)
        except TimeoutError:
            raise SlowReaderError from None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._context.done():
                await self._next.join()
        finally:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            message = await self._next.get()
            try:
                await self._context.write(message)
            except Exception as error:  # the client has left; what is still to come is nobody's
                _log.debug("a gRPC message could not be written: %s", error)
            self._next.task_done()
