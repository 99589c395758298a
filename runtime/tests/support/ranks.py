"""A model split over processes of this machine: rank 0 in the test's own, the others in children."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.ranks import Ranks, open_comm
from oarlock_runtime.models.checkpoint import open_checkpoint

TIME_LIMIT = 30.0


def _join(rank: int, world: int, pipes: list[Connection]) -> Ranks:
    """Rank 0 has a pipe to every other rank, the others one to rank 0."""
    comm = open_comm(rank, world, TIME_LIMIT)
    if rank == 0:
        addresses = [comm.address, *(pipe.recv_bytes() for pipe in pipes)]
        for pipe in pipes:
            pipe.send(addresses)
    else:
        pipes[0].send_bytes(comm.address)
        addresses = pipes[0].recv()
    comm.connect(addresses, [f"process {index}" for index in range(world)])
    return Ranks(rank, world, comm)


def follow(rank: int, world: int, path: Path, options: ExecutorOptions, pipe: Connection) -> None:
    """What a child runs: every order of rank 0's until it says stop."""
    executor = load_executor(open_checkpoint(path), options, ranks=_join(rank, world, [pipe]))
    while executor.follow() != "stop":
        pass


@contextmanager
def split_executor(path: Path, options: ExecutorOptions, world: int) -> Iterator[CoreExecutor]:
    """Rank 0's executor of the model at `path`, split over `world` processes."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(world - 1)]
    children = [
        context.Process(target=follow, args=(rank, world, path, options, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pipes, start=1)
    ]
    for child in children:
        child.start()
    try:
        executor = load_executor(open_checkpoint(path), options, ranks=_join(0, world, [own for own, _ in pipes]))
        yield executor
        executor.beat()
        executor.stop_followers()
        for child in children:
            child.join(TIME_LIMIT)
        assert [child.exitcode for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()
            child.join()
