"""Whose round is next."""

import asyncio

import pytest

from oarlock_operator.controller import turns
from oarlock_operator.controller.turns import Turns


def test_what_was_begun_comes_before_what_is_new() -> None:
    order: list[str] = []

    async def story() -> None:
        found = Turns()

        async def take(name: str, begun: bool) -> None:
            async with found.one(begun):
                order.append(name)
                await asyncio.sleep(0)
                order.append(name)

        names = [("a", False), ("b", False), ("c", True), ("d", False), ("e", True)]
        await asyncio.gather(*(take(name, begun) for name, begun in names))

    asyncio.run(story())
    assert order == [name for name in "acebd" for _ in range(2)]


def test_a_slow_round_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLOW_SECONDS", 0.05)

    async def story() -> None:
        found, answered = Turns(), asyncio.Event()

        async def slow() -> None:
            async with found.one(False):
                await answered.wait()

        task = asyncio.create_task(slow())
        await asyncio.sleep(0)
        for _ in range(2):
            async with asyncio.timeout(10), found.one(False):
                assert not task.done()
        answered.set()
        await task
        async with asyncio.timeout(10), found.one(False):  # the slow one gave its turn back only once
            waiting = asyncio.create_task(slow())
            await asyncio.sleep(0)
            assert not found._free
        await waiting

    asyncio.run(story())


def test_who_stops_waiting_takes_no_turn_along() -> None:
    async def story() -> None:
        found = Turns()

        async def wait() -> None:
            async with found.one(False):
                raise AssertionError("nobody waits for this one")

        async with found.one(False):
            before, after = (asyncio.create_task(wait()) for _ in range(2))
            await asyncio.sleep(0)
            before.cancel()
            await asyncio.sleep(0)
        after.cancel()  # it was given its turn, but hasn't begun
        await asyncio.wait({before, after})
        assert before.cancelled() and after.cancelled()
        async with asyncio.timeout(10), found.one(False):
            pass

    asyncio.run(story())
