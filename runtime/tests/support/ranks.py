"""A model split over processes of this machine: rank 0 in the test's own, the others in children."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions
from oarlock_runtime.engine.local_ranks import split_model
from oarlock_runtime.models.checkpoint import open_checkpoint


@contextmanager
def split_executor(path: Path, options: ExecutorOptions, world: int) -> Iterator[CoreExecutor]:
    """Rank 0's executor of the model at `path`, split over `world` processes."""
    with split_model(partial(open_checkpoint, path, "auto"), options, world) as model:
        yield model.executor
