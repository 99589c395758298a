"""A process's place among the ranks that one model is split over, and its connection to the others.

Used by the engine process (rank 0) and the worker processes (the others); ipc/formation.py brings them together.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oarlock_runtime import _C
from oarlock_runtime.errors import SettingError


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank `rank` of `world`, connected to the others, and the `local`-th of this host: the number of its GPU."""

    rank: int
    world: int
    comm: _C.Comm
    local: int = 0

    def least(self, value: int) -> int:
        """The least of what every rank gives, up to 2^24."""
        values = np.zeros(self.world, np.float32)
        values[self.rank] = value
        self.comm.all_reduce(values)
        return int(values.min())


def ucx_library() -> str:
    """The file of UCX's library where a Python package brought it, else "": the system's own, if it has one."""
    return _packaged("libucx", "libucp.so.0")


def nccl_library() -> str:
    """The file of NCCL's library, likewise."""
    return _packaged("nvidia.nccl", "libnccl.so.2")


def _packaged(package: str, name: str) -> str:
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of what the package is in
        return ""
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        library = Path(folder) / "lib" / name
        if library.exists():
            return str(library)
    return ""


def require_devices(wanted: int, reason: str) -> None:
    """SettingError when this process sees fewer GPUs than the `wanted` ranks of this host."""
    count = _C.cuda_device_count()
    if count >= wanted:
        return
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen})"
    raise SettingError(f"{reason} takes {wanted} GPUs of this host, one for each rank; there are {count}{shown}")


def open_comm(rank: int, world: int, time_limit: float) -> _C.Comm:
    """This rank's end, not yet connected; `time_limit` seconds bound every wait. RuntimeError when UCX can't be had."""
    return _C.Comm(rank, world, time_limit, ucx_library())
