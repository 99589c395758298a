"""Whose round is next."""

import asyncio

import pytest

from oarlock_operator.controller import turns
from oarlock_operator.controller.turns import Turns


def order_of(asked: list[tuple[str, bool]]) -> list[str]:
    """The order in which those who ask get their turn; each has it alone."""
    order: list[str] = []

    async def story() -> None:
        found = Turns()

        async def take(name: str, known: bool) -> None:
            async with found.one(known):
                order.append(name)
                await asyncio.sleep(0)
                assert order[-1] == name

        await asyncio.gather(*(take(name, known) for name, known in asked))

    asyncio.run(story())
    return order


def test_the_known_come_before_the_new() -> None:
    asked = [("a", False), ("b", False), ("c", True), ("d", False), ("e", True)]
    assert order_of(asked) == ["a", "c", "e", "b", "d"]


def test_the_new_have_a_share_all_the_same() -> None:
    asked = [("a", True), ("n1", False), ("n2", False), *((str(number), True) for number in range(10))]
    found = order_of(asked)
    assert found.index("n1") == turns._NEW_EVERY and found.index("n2") == 2 * turns._NEW_EVERY


def test_who_goes_on_at_once_is_in_time() -> None:
    order = []

    async def story() -> None:
        found = Turns()

        async def again() -> None:
            for name in ("first", "again"):
                async with found.one(True):
                    order.append(name)
                    await asyncio.sleep(0)

        async def once() -> None:
            async with found.one(False):
                order.append("new")

        await asyncio.gather(again(), once())

    asyncio.run(story())
    assert order == ["first", "again", "new"]


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
