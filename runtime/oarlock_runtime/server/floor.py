"""Achieved ÷ floor of the engine's last steps, for /metrics. Runs in the engine process.

The floor of a step is the time that reading its bytes (weights and KV cache) takes at the memory's bandwidth. Measuring
that takes half a second of all cores, so it happens once a machine, when the engine has been idle for a while, and the
figure is kept in the cache directory.
"""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

from oarlock_runtime import _C
from oarlock_runtime.engine.memory import available_memory
from oarlock_runtime.engine.stats import EngineStats

IDLE_SECONDS = 10.0  # without a step, before the machine is measured
_SAMPLE_SECONDS = 0.05
_MEMORY_NEEDED = 2 << 30  # bytes free, so that the measurement's buffer can't be what fills the machine


class FloorMeter:
    """`ratio` is 0 until the machine's bandwidth is known and a step has been made."""

    def __init__(self, cache_dir: Path, threads: int) -> None:
        self._file = cache_dir.expanduser() / "machine" / f"{_machine()}-{threads}.json"
        self._threads = threads
        self._bandwidth = _stored(self._file)
        self._measuring = self._bandwidth > 0
        self._last = EngineStats()
        self._worked = time.monotonic()
        self._ratio = 0.0

    def ratio(self, stats: EngineStats) -> float:
        """To be called with each heartbeat's counters."""
        now = time.monotonic()
        last, self._last = self._last, stats
        seconds = stats.executor_seconds_total - last.executor_seconds_total
        if seconds > 0:
            self._worked = now
            if self._bandwidth:
                self._ratio = (stats.bytes_read_total - last.bytes_read_total) / self._bandwidth / seconds
        elif not self._measuring and now - self._worked > IDLE_SECONDS and available_memory() > _MEMORY_NEEDED:
            self._measuring = True
            threading.Thread(target=self._measure, daemon=True).start()
        return self._ratio

    def _measure(self) -> None:
        self._bandwidth = _C.read_bandwidth(self._threads, _SAMPLE_SECONDS)
        with contextlib.suppress(OSError):  # a read-only cache: the next start measures again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"read_bytes_per_second": self._bandwidth}))
            part.replace(self._file)


def _stored(file: Path) -> float:
    """The bandwidth measured before; 0 when there is none."""
    try:
        return max(float(json.loads(file.read_text())["read_bytes_per_second"]), 0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _machine() -> str:
    """A file name for this kind of processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return "".join(letter if letter.isalnum() else "-" for letter in value.strip())[:64]
    return "processor"
