"""Posts events about ModelDeployments beside the reconcile loop: what they tell of must not wait for them.

One at a time, in order. What was said already is counted up, as `kubectl events` shows it ("x3 over 5m"). Of more than
the queue holds, and of one that can't be posted, the operator's log tells.
"""

import asyncio
import contextlib
import logging
import uuid
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any

from oarlock_operator.api import names
from oarlock_operator.api.deployment import ModelDeployment
from oarlock_operator.controller.client import Api, ApiError
from oarlock_operator.decide.actions import Event

_WAITING = 10_000
_LAST_SECONDS = 2.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_REMEMBERED = 1_000
_SAME = timedelta(minutes=30)  # less than an event is kept by the API server

log = logging.getLogger(__name__)


class EventRecorder:
    """`record` takes an event, `run` posts them until it is cancelled, `finish` gives the last ones a moment."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING)
        self._posted: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()

    def record(self, deployment: ModelDeployment, event: Event, now: datetime) -> None:
        try:
            self._queue.put_nowait(body(deployment, event, now))
        except asyncio.QueueFull:
            log.warning("event %s not posted: %d others wait", event.reason, _WAITING)

    async def run(self) -> None:
        while True:
            found = await self._queue.get()
            try:
                await self._post(found)
            except Exception as error:
                log.warning("event %s not posted: %s", found["reason"], str(error) or type(error).__name__)
            finally:
                self._queue.task_done()

    async def _post(self, found: dict[str, Any]) -> None:
        key = (found["involvedObject"]["uid"], found["reason"], found["message"])
        last = self._posted.pop(key, None)
        if last is None or _moment(found) - _moment(last) > _SAME or not await self._count_up(last, found):
            await self._api.create(found)
            last = found
        self._posted[key] = last
        if len(self._posted) > _REMEMBERED:
            self._posted.popitem(last=False)

    async def _count_up(self, last: dict[str, Any], again: dict[str, Any]) -> bool:
        """Whether the event `last` is there still, and counts what happened `again`."""
        news = {"count": last["count"] + 1, "lastTimestamp": again["lastTimestamp"]}
        metadata = last["metadata"]
        try:
            await self._api.merge("Event", metadata["namespace"], metadata["name"], news)
        except ApiError:
            return False
        last |= news
        return True

    async def finish(self) -> None:
        """Waits until all are posted, but not for long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), _LAST_SECONDS)


def body(deployment: ModelDeployment, event: Event, now: datetime) -> dict[str, Any]:
    """The event as the API server takes it."""
    time = now.strftime(_TIME)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{deployment.name}.{uuid.uuid4().hex[:16]}", "namespace": deployment.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": deployment.name,
            "namespace": deployment.namespace,
            "uid": deployment.uid,
            "resourceVersion": deployment.resource_version,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1000],
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def _moment(event: dict[str, Any]) -> datetime:
    return datetime.strptime(event["lastTimestamp"], _TIME)
