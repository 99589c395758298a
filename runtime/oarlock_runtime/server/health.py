"""Whether the server lives and whether it is ready, in PaddleNLP's terms. Runs in the supervisor.

`live` answers "should this be restarted": yes only once the engine's step loop has been silent for long, or when all is
lost. It holds while the model is loaded. `ready` answers "may requests be sent here": the engine and all servers have
loaded, the step loop beats, and nobody asked us to stop. Both answer 200 without a body, or 500 with one of these:
1 server is not ready (loading or stopping), 2 infer engine is down, 3 infer engine hangs.
"""

import json
import os
import time
from enum import Enum

from oarlock_runtime.server.child import Child
from oarlock_runtime.server.light_http import Page
from oarlock_runtime.server.metrics import Family
from oarlock_runtime.server.place import place_of, silence_limit
from oarlock_runtime.settings import Settings

LIVE_BEATS = 6  # heartbeat_seconds of silence after which the server should be restarted
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class State(Enum):
    LOADING = 0
    SERVING = 1
    DRAINING = 2
    FAILED = 3


class Health:
    """`state` is the supervisor's; `serve` is called once all children are ready."""

    def __init__(self, settings: Settings) -> None:
        self.state = State.LOADING
        split = place_of(settings).split
        # Seconds that a process may be silent and still count as ready.
        self._patience = silence_limit(settings) if split else settings.heartbeat_seconds
        self._strict = settings.strict_paddle  # live is ready, as in PaddleNLP's server
        self._children: list[Child] = []
        self._started = time.time()

    def serve(self, children: list[Child]) -> None:
        self._children = children
        self.state = State.SERVING

    def silence(self) -> float:
        """Seconds since the child that has been silent for longest last beat."""
        now = time.monotonic()
        return max((now - child.last_beat for child in self._children), default=0.0)

    def hung_ranks(self) -> list[Child]:
        """The processes that compute and have been silent for longer than they may be."""
        now = time.monotonic()
        ranks = [child for child in self._children if not child.name.startswith("server")]
        return [child for child in ranks if now - child.last_beat > self._patience]

    def problem(self, *, live: bool) -> tuple[int, str] | None:
        """PaddleNLP's error code and message, or None when all is well."""
        live = live and not self._strict
        if self.state is State.FAILED:
            return 2, "infer engine is down"
        if self.state is not State.SERVING and not live:
            return 1, "server is not ready"
        if self.silence() > self._patience * (LIVE_BEATS if live else 1):
            return 3, "infer engine hangs"
        return None

    def pages(self) -> dict[str, Page]:
        async def live() -> tuple[int, str, bytes]:
            return _told(self.problem(live=True))

        async def ready() -> tuple[int, str, bytes]:
            return _told(self.problem(live=False))

        return {"/v2/health/live": live, "/v2/health/ready": ready}

    def families(self, children: list[Child]) -> list[Family]:
        """What the supervisor itself adds to /metrics."""
        memory = [
            ("oarlock_process_memory_bytes", {"process": child.name}, float(resident_bytes(child.pid)))
            for child in children
            if child.exit_status is None
        ]
        memory.append(("oarlock_process_memory_bytes", {"process": "supervisor"}, float(resident_bytes(os.getpid()))))
        return [
            _gauge("oarlock_ready", "1 while /v2/health/ready answers 200.", float(self.problem(live=False) is None)),
            _gauge("oarlock_heartbeat_age_seconds", "Since the longest silent process last beat.", self.silence()),
            _gauge("oarlock_start_time_seconds", "When the server was started, in Unix time.", self._started),
            {
                "name": "oarlock_process_memory_bytes",
                "kind": "gauge",
                "help": "Resident memory of each process.",
                "samples": memory,
            },
        ]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _gauge(name: str, help: str, value: float) -> Family:
    return {"name": name, "kind": "gauge", "help": help, "samples": [(name, {}, value)]}


def _told(problem: tuple[int, str] | None) -> tuple[int, str, bytes]:
    if problem is None:
        return 200, "text/plain", b""
    code, message = problem
    return 500, "application/json", json.dumps({"error_code": code, "error_msg": message}).encode()
