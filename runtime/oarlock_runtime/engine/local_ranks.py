"""A model split over processes of this machine that one program starts, for benches and tests.

Rank 0 is the caller's own process, the others are its children. A server forms its ranks otherwise (ipc/formation.py).
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from oarlock_runtime import _C
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.ranks import Ranks, open_comm, require_devices
from oarlock_runtime.models.checkpoint import Checkpoint

Open = Callable[[int, int], Checkpoint]  # the model as a rank, and one of so many, needs it
TIME_LIMIT = 60.0  # seconds that ranks wait for each other: while they load, and at work


@dataclass(frozen=True, slots=True)
class SplitModel:
    """Rank 0's end of a split model."""

    executor: CoreExecutor
    comm: _C.Comm
    device: str

    @property
    def exchange_seconds(self) -> float:
        """That rank 0 has spent in exchanges, waiting for other ranks included."""
        return self.comm.seconds if self.device == "cpu" else self.executor.exchange_seconds


@contextmanager
def split_model(opened: Open, options: ExecutorOptions, world: int) -> Iterator[SplitModel]:
    """The model that `opened` opens (in every process: it must be picklable), split over `world` ranks.

    On leaving, the other ranks are told to stop and waited for. ConnectionError when one of them is lost, SettingError
    when there are fewer GPUs than ranks.
    """
    if options.device == "cuda":
        require_devices(world, f"a model over {world} ranks")
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(world - 1)]
    children = [
        context.Process(target=_follow, args=(rank, world, opened, options, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pipes, start=1)
    ]
    try:
        for child, (_, theirs) in zip(children, pipes, strict=True):
            child.start()
            theirs.close()  # so that a child's end is seen here
        ranks = _join(0, world, [own for own, _ in pipes])
        executor = load_executor(opened(0, world), options, ranks=ranks)
        yield SplitModel(executor, ranks.comm, options.device)
        executor.beat()
        executor.stop_followers()
        for child in children:
            child.join(TIME_LIMIT)
        failed = [f"{child.exitcode}" for child in children if child.exitcode != 0]
        if failed:
            raise ConnectionError(f"ranks ended with status {', '.join(failed)}")
    finally:
        for child in children:
            if child.pid is not None:
                child.kill()
                child.join()


def _join(rank: int, world: int, pipes: list[Connection]) -> Ranks:
    """Rank 0 has a pipe to every other rank, the others one to rank 0."""
    comm = open_comm(rank, world, TIME_LIMIT)
    if rank == 0:
        addresses = [comm.address, *(_receive(pipe) for pipe in pipes)]
        for pipe in pipes:
            pipe.send(addresses)
    else:
        pipes[0].send(comm.address)
        addresses = _receive(pipes[0])
    comm.connect(addresses, [f"process {index}" for index in range(world)])
    return Ranks(rank, world, comm, local=rank)


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(TIME_LIMIT):
        raise ConnectionError(f"a rank has said nothing for {TIME_LIMIT:g} s")
    try:
        return pipe.recv()
    except EOFError as error:
        raise ConnectionError("a rank ended before the ranks were connected") from error


def _follow(rank: int, world: int, opened: Open, options: ExecutorOptions, pipe: Connection) -> None:
    """What a child runs: every order of rank 0's until it says stop."""
    executor = load_executor(opened(rank, world), options, ranks=_join(rank, world, [pipe]))
    while executor.follow() != "stop":
        pass
