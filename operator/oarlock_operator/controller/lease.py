"""Leader election by a Lease: one operator writes; another takes over when the lease runs out or is given back.

The holder counts from when it *sent* its last renewal. It writes only until the renewal deadline (7 s) and gives every
write less time than is left until the lease ends (10 s); others wait those 10 s from when they *saw* the last renewal.
Clocks of different machines are never compared. A write of a process that was frozen in between is refused by the API
server: it carries the uid or resourceVersion of what was observed before, and the chart's admission policy lets no pod
but the lease's holder write, whatever it is (templates/fence.yaml).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from oarlock_operator.controller.client import Api, ApiError, NotLeader

DURATION, DEADLINE, RETRY = 10.0, 7.0, 2.0

log = logging.getLogger(__name__)


class Lease:
    """`acquire` waits until this process leads; `hold` returns when it no longer may."""

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._clock = clock
        self._renewed = float("-inf")  # when the last renewal that succeeded was sent
        self._seen: tuple[str, str] | None = None  # holder and renewTime as last read
        self._seen_at = 0.0  # when that was first read

    @property
    def safe(self) -> bool:
        """Whether writes are allowed now."""
        return self._clock() - self._renewed < DEADLINE

    def check(self) -> None:
        """The fence in front of every write. Raises NotLeader."""
        if not self.safe:
            raise NotLeader(f"the lease was not renewed for {DEADLINE:g} s")

    async def acquire(self) -> None:
        """Returns when the lease is ours."""
        while not await self.try_once():
            left = self._seen_at + DURATION - self._clock()  # of the present holder's time, if it doesn't renew
            await asyncio.sleep(min(RETRY, left) if left > 0 else RETRY)
        log.info("%s leads", self.identity)

    async def hold(self) -> None:
        """Renews until that fails for longer than the deadline."""
        while self.safe:
            await asyncio.sleep(RETRY)
            await self.try_once()
        log.error("the lease is lost")

    async def release(self) -> None:
        """Gives the lease back, so that the next one needn't wait for its end."""
        if not self.safe:
            return
        try:
            found = await self._api.get("Lease", self._namespace, self._name)
            if found["spec"].get("holderIdentity") == self.identity:
                found["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
                await self._put(found)
        except ApiError as error:
            log.warning("the lease could not be given back: %s", error)
        self._renewed = float("-inf")

    async def try_once(self) -> bool:
        """Takes or renews the lease if that is allowed; whether it is ours now."""
        sent = self._clock()
        try:
            async with asyncio.timeout(DEADLINE - RETRY):
                mine = await self._take()
        except (ApiError, TimeoutError) as error:
            log.warning("lease %s/%s: %s", self._namespace, self._name, error or "no answer in time")
            return False
        if mine:
            self._renewed = sent
        return mine

    async def _take(self) -> bool:
        try:
            found = await self._api.get("Lease", self._namespace, self._name)
        except ApiError as error:
            if error.status != 404:
                raise
            return await self._create()
        spec = found["spec"]
        holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if (holder, renewed) != self._seen:
            self._seen, self._seen_at = (holder, renewed), self._clock()
        if holder not in ("", self.identity) and self._clock() - self._seen_at < DURATION:
            return False
        if holder != self.identity:
            spec |= {"acquireTime": _now(), "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        spec |= {"holderIdentity": self.identity, "leaseDurationSeconds": int(DURATION), "renewTime": _now()}
        try:
            await self._put(found)
        except ApiError as error:
            if error.status == 409:
                return False  # somebody was quicker
            raise
        return True

    async def _create(self) -> bool:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(DURATION),
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }
        try:
            await self._api.create(body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    async def _put(self, body: dict[str, Any]) -> None:
        await self._api.replace({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **body})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
