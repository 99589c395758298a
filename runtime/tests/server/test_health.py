"""Live and ready mean different things; the codes are PaddleNLP's."""

import asyncio
import time
from typing import Any

import pytest

from oarlock_runtime.server.health import Health, State
from oarlock_runtime.settings import Settings


class Beating:
    """A child, as far as health looks at it."""

    def __init__(self, age: float) -> None:
        self.last_beat = time.monotonic() - age


@pytest.mark.conformance(25)
@pytest.mark.parametrize(
    ("state", "age", "live", "ready"),
    [
        (State.LOADING, 0, None, 1),
        (State.SERVING, 0, None, None),
        (State.SERVING, 11, None, 3),
        (State.SERVING, 61, 3, 3),
        (State.DRAINING, 0, None, 1),
        (State.DRAINING, 61, 3, 1),
        (State.FAILED, 0, 2, 2),
    ],
)
def test_live_and_ready(state: State, age: float, live: int | None, ready: int | None) -> None:
    health = Health(Settings(heartbeat_seconds=10.0))
    children: list[Any] = [Beating(0), Beating(age)]
    if state is not State.LOADING:
        health.serve(children)
    health.state = state
    for name, code in (("live", live), ("ready", ready)):
        status, _, body = asyncio.run(health.pages()[f"/v2/health/{name}"]())  # type: ignore[arg-type]
        assert status == (200 if code is None else 500)
        assert body == b"" if code is None else b'"error_code": %d' % code in body


@pytest.mark.conformance(25)
def test_strict_live_is_ready() -> None:
    health = Health(Settings(strict_paddle=True))
    status, _, body = asyncio.run(health.pages()["/v2/health/live"]())  # type: ignore[arg-type]
    assert status == 500 and b'"error_code": 1' in body
