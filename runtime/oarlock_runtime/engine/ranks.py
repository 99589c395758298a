"""A process's place among the ranks that one model is split over, and its connection to the others.

Used by the engine process (rank 0) and the worker processes (the others); ipc/formation.py brings them together.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oarlock_runtime import _C


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank `rank` of `world`, connected to the others."""

    rank: int
    world: int
    comm: _C.Comm

    def least(self, value: int) -> int:
        """The least of what every rank gives, up to 2^24."""
        values = np.zeros(self.world, np.float32)
        values[self.rank] = value
        self.comm.all_reduce(values)
        return int(values.min())


def ucx_library() -> str:
    """The file of UCX's library where a Python package brought it, else "": the system's own, if it has one."""
    found = importlib.util.find_spec("libucx")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        library = Path(folder) / "lib" / "libucp.so.0"
        if library.exists():
            return str(library)
    return ""


def open_comm(rank: int, world: int, time_limit: float) -> _C.Comm:
    """This rank's end, not yet connected; `time_limit` seconds bound every wait. RuntimeError when UCX can't be had."""
    return _C.Comm(rank, world, time_limit, ucx_library())
