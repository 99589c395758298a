"""The lease's arithmetic on a clock of its own: when writes are safe, when others may take over."""

import asyncio
from typing import Any

import pytest

from oarlock_operator.controller.client import ApiError, NotLeader
from oarlock_operator.controller.lease import DEADLINE, DURATION, Lease


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeApi:
    """Holds one Lease and refuses what is out of date."""

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.down = False

    async def get(self, *_: str) -> dict[str, Any]:
        self._check()
        if self.body is None:
            raise ApiError(404, "not found")
        return {**self.body, "metadata": dict(self.body["metadata"]), "spec": dict(self.body["spec"])}

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.body is not None:
            raise ApiError(409, "exists")
        self.body = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        return self.body

    async def replace(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        assert self.body is not None
        if body["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise ApiError(409, "conflict")
        version = str(int(body["metadata"]["resourceVersion"]) + 1)
        self.body = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
        return self.body

    def _check(self) -> None:
        if self.down:
            raise ApiError(0, "no answer")


@pytest.fixture
def world() -> tuple[FakeApi, Clock, Lease, Lease]:
    api, clock = FakeApi(), Clock()
    first, second = (Lease(api, "n", "l", name, clock) for name in ("a", "b"))  # type: ignore[arg-type]
    return api, clock, first, second


def test_one_leads_and_the_other_waits_its_full_time(world: tuple[FakeApi, Clock, Lease, Lease]) -> None:
    _, clock, first, second = world
    assert asyncio.run(first.try_once()) and first.safe
    clock.now += 5
    assert not asyncio.run(second.try_once())  # seen for the first time now
    clock.now += DURATION - 0.1
    assert not asyncio.run(second.try_once())
    clock.now += 0.2
    assert asyncio.run(second.try_once())
    assert not first.safe and not asyncio.run(first.try_once())


def test_no_write_after_the_deadline(world: tuple[FakeApi, Clock, Lease, Lease]) -> None:
    api, clock, first, _ = world
    with pytest.raises(NotLeader):
        first.check()
    assert asyncio.run(first.try_once())
    first.check()
    api.down = True
    clock.now += DEADLINE - 0.1
    assert not asyncio.run(first.try_once())
    first.check()
    clock.now += 0.2
    with pytest.raises(NotLeader):
        first.check()
    api.down = False
    assert asyncio.run(first.try_once()) and first.safe


def test_a_released_lease_is_taken_at_once(world: tuple[FakeApi, Clock, Lease, Lease]) -> None:
    api, _, first, second = world
    assert asyncio.run(first.try_once()) and not asyncio.run(second.try_once())
    asyncio.run(first.release())
    assert not first.safe and asyncio.run(second.try_once())
    assert api.body is not None and api.body["spec"]["leaseTransitions"] == 1
