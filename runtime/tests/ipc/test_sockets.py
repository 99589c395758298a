"""Both ends of the engine's socket, with an engine on a toy executor in a thread or in a process of its own."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.toy_engine import PATIENCE, READY, VOCAB, EngineThread, engine_process
from support.toy_executor import expected_tokens

from oarlock_runtime.engine.request import Finish, Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import OarlockError, RequestError, SettingError
from oarlock_runtime.ipc import sockets
from oarlock_runtime.ipc.address import engine_address
from oarlock_runtime.ipc.client import EngineClient, EngineDead
from oarlock_runtime.ipc.messages import AddRequest, Heartbeat
from oarlock_runtime.ipc.sockets import request_of
from oarlock_runtime.ipc.stream import TokenStream


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def engine(run_dir: Path) -> Iterator[EngineThread]:
    thread = EngineThread(run_dir)
    yield thread
    thread.stop()


@contextlib.asynccontextmanager
async def connected(run_dir: Path, name: str = "server") -> AsyncIterator[EngineClient]:
    client = EngineClient(run_dir, name)
    try:
        assert await client.connect(PATIENCE) == READY
        yield client
    finally:
        client.close()


async def collect(stream: TokenStream) -> tuple[list[int], Finish]:
    tokens: list[int] = []
    while chunk := await asyncio.wait_for(stream.next(), PATIENCE):
        tokens += chunk.token_ids
        if chunk.finish:
            assert await stream.next() is None
            return tokens, chunk.finish
    raise AssertionError("the stream ended without a finish")


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def prompt(seed: int, length: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 60, length).astype(np.int32)


def test_requests_of_two_servers_get_their_own_tokens(engine: EngineThread, run_dir: Path) -> None:
    async def main() -> None:
        async with connected(run_dir, "a") as a, connected(run_dir, "b") as b:
            wanted = [Request(0, prompt(seed), SamplingParams(max_tokens=30, seed=seed)) for seed in range(4)]
            streams = [
                await client.add(request.prompt, request.sampling)
                for client, request in zip((a, b, a, b), wanted, strict=True)
            ]
            results = await asyncio.gather(*map(collect, streams))
            assert results == [expected_tokens(request, VOCAB, (), 512) for request in wanted]
            assert not a._streams and not b._streams
            await until(lambda: a.stats.finished_total == 4)
            assert a.heartbeat_age < PATIENCE

    asyncio.run(main())


def test_logprobs_and_cached_tokens_arrive(engine: EngineThread, run_dir: Path) -> None:
    async def main() -> None:
        async with connected(run_dir) as client:
            sampling = SamplingParams(max_tokens=5, seed=1, top_logprobs=2, prompt_logprobs=1)
            stream = await client.add(prompt(1), sampling)
            other = await client.add(prompt(2), SamplingParams(max_tokens=5, seed=1, top_logprobs=4))
            chunks = []
            while chunk := await stream.next():
                chunks.append(chunk)
            assert [len(part.top) for chunk in chunks for part in chunk.logprobs] == [2] * 5
            assert [len(part.top) for chunk in chunks for part in chunk.prompt_logprobs] == [1] * 99
            assert next(chunk.cached_tokens for chunk in chunks if chunk.token_ids) == 0
            await collect(other)
            again = await client.add(prompt(1), SamplingParams(max_tokens=1))
            first = await again.next()
            assert first is not None and first.cached_tokens == 64 and first.queue_seconds >= 0

    asyncio.run(main())


def test_refused_requests_say_why(engine: EngineThread, run_dir: Path) -> None:
    async def main() -> None:
        async with connected(run_dir) as client:
            with pytest.raises(RequestError, match="at most 511 fit") as too_long:
                await client.add(prompt(1, 512), SamplingParams())
            assert (too_long.value.field, too_long.value.code) == ("prompt", "context_length_exceeded")
            streams = [await client.add(prompt(seed), SamplingParams(max_tokens=400)) for seed in range(6)]
            with pytest.raises(RequestError) as full:
                await client.add(prompt(9), SamplingParams())
            assert full.value.status == 429 and 1 <= full.value.retry_after <= 60
            for stream in streams:
                stream.abort()
                stream.abort()
            assert await streams[0].next() is not None and await streams[0].next() is None
            await until(lambda: not engine.engine.has_work)
            assert engine.engine.stats().aborted_total == 6

    engine.before_step = lambda: time.sleep(0.005)
    asyncio.run(main())


def test_a_server_that_leaves_takes_its_requests_along(engine: EngineThread, run_dir: Path) -> None:
    async def main() -> None:
        async with connected(run_dir, "stays") as stays:
            async with connected(run_dir, "leaves") as leaves:
                await leaves.add(prompt(1), SamplingParams(max_tokens=400))
                stream = await stays.add(prompt(2), SamplingParams(max_tokens=100, seed=3))
            await until(lambda: engine.engine.stats().aborted_total == 1)
            assert len((await collect(stream))[0]) == 100

    engine.before_step = lambda: time.sleep(0.002)
    asyncio.run(main())


def test_a_server_that_does_not_read_is_dropped_and_told(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "QUEUE_BYTES", 1024)
    engine = EngineThread(run_dir)

    async def main() -> None:
        async with connected(run_dir) as client:
            await client.add(prompt(1), SamplingParams(max_tokens=400))
            engine.before_step = lambda: [engine.socket._broadcast(Heartbeat(client.stats)) for _ in range(1000)]
            end = time.monotonic() + PATIENCE
            while not engine.engine.stats().aborted_total:
                assert time.monotonic() < end
                time.sleep(0.01)  # the event loop reads nothing meanwhile
            reason = await asyncio.wait_for(asyncio.shield(client.closed), PATIENCE)
            assert "did not answer in time" in reason

    try:
        asyncio.run(main())
    finally:
        engine.stop()


def test_an_idle_engine_sleeps_and_wakes_at_once(engine: EngineThread, run_dir: Path) -> None:
    async def main() -> None:
        async with connected(run_dir) as client:
            turns = engine.turns
            await asyncio.sleep(0.5)
            assert engine.turns - turns < 30
            stream = await client.add(prompt(1), SamplingParams(max_tokens=3, seed=0))
            await collect(stream)

    asyncio.run(main())


@pytest.mark.parametrize("failing", [False, True])
def test_an_engine_that_dies_is_noticed_with_a_reason(run_dir: Path, failing: bool) -> None:
    process = multiprocessing.get_context("spawn").Process(target=engine_process, args=(str(run_dir), failing))

    async def main() -> None:
        async with connected(run_dir) as client:
            stream = await client.add(prompt(1), SamplingParams(max_tokens=400))
            assert await stream.next() is not None
            if not failing:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
            killed = time.monotonic()
            reason = await asyncio.wait_for(asyncio.shield(client.closed), PATIENCE)
            assert failing or time.monotonic() - killed < 2
            assert reason == client.dead == ("the model melted" if failing else "its process is gone")
            last = None
            while chunk := await stream.next():
                last = chunk
            assert last is not None and last.finish == Finish.ERROR and reason in last.error
            with pytest.raises(EngineDead, match=reason):
                await client.add(prompt(1), SamplingParams())

    process.start()
    try:
        asyncio.run(main())
    finally:
        process.kill()
        process.join(PATIENCE)


def test_an_engine_that_is_not_there_ends_the_wait(run_dir: Path) -> None:
    async def main() -> None:
        client = EngineClient(run_dir, "server")
        with pytest.raises(OarlockError, match=r"not ready within 0\.1 s"):
            await client.connect(0.1)
        client.close()
        client.close()

    asyncio.run(main())


def test_an_engine_that_dropped_a_server_tells_it(engine: EngineThread, run_dir: Path) -> None:
    async def main() -> None:
        async with connected(run_dir) as client:
            dropped = False

            def drop() -> None:
                nonlocal dropped
                if not dropped:
                    dropped = True
                    engine.socket._drop(next(iter(engine.socket._clients.values())), "is tested")

            stream = await client.add(prompt(1), SamplingParams(max_tokens=400))
            engine.before_step = drop
            assert "dropped" in await asyncio.wait_for(asyncio.shield(client.closed), PATIENCE)
            await until(lambda: not engine.engine.has_work)
            assert stream._ended

    asyncio.run(main())


def test_the_run_directory_is_private(tmp_path: Path) -> None:
    assert engine_address(tmp_path / "new" / "run") == str(tmp_path / "new" / "run" / "engine.sock")
    assert (tmp_path / "new" / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(SettingError, match="must be 0700"):
        engine_address(tmp_path / "open")
    with pytest.raises(SettingError, match="longer than 107 bytes"):
        engine_address(tmp_path / ("x" * 100))


def test_a_prompt_that_is_no_array_is_refused() -> None:
    with pytest.raises(RequestError, match="3 bytes"):
        request_of(AddRequest(1, b"abc", SamplingParams()))
