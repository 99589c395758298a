"""A model split over ranks for a test: in processes of this machine, or, many times quicker, in threads of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.local_ranks import split_model
from oarlock_runtime.engine.ranks import Ranks, open_comm
from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint

SECONDS = 120.0


class OwnDirectory:
    """Opens the directory of each rank's host, in whatever process: `folder`/host-0 and on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rank: int, world: int) -> Checkpoint:
        return open_checkpoint(self.folder / f"host-{rank}", rank=rank, world=world)


@contextmanager
def split_executor(path: Path, options: ExecutorOptions, world: int) -> Iterator[CoreExecutor]:
    """Rank 0's executor of the model at `path`, split over `world` processes."""
    with split_model(partial(open_checkpoint, path, "auto"), options, world) as model:
        yield model.executor


@contextmanager
def threaded_executor(checkpoint: Checkpoint, options: ExecutorOptions, world: int) -> Iterator[CoreExecutor]:
    """Rank 0's executor of an open model, split over `world` threads; what befalls another ends rank 0's wait."""
    comms = [open_comm(rank, world, SECONDS) for rank in range(world)]
    addresses, names = [comm.address for comm in comms], [f"thread {rank}" for rank in range(world)]

    def joined(rank: int) -> CoreExecutor:
        comms[rank].connect(addresses, names)
        return load_executor(checkpoint, options, ranks=Ranks(rank, world, comms[rank]))

    def follow(rank: int) -> None:
        try:
            executor = joined(rank)
            while executor.follow() != "stop":
                pass
        except Exception as error:
            comms[0].abort(f"rank {rank}: {error}")

    threads = [threading.Thread(target=follow, args=(rank,), daemon=True) for rank in range(1, world)]
    for thread in threads:
        thread.start()
    executor = joined(0)
    yield executor
    executor.stop_followers()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
