"""`stop_server [SECONDS]` as PaddleNLP has it: every server that start_server has started drains and ends.

Runs in the user's process.
"""

import signal
import sys
import time
from collections.abc import Sequence

from oarlock_runtime.cli.paddle.started import Started, running

USAGE = """usage: stop_server [SECONDS]

Stops what start_server has started: running requests may finish for SECONDS (default 300), then all is killed.
"""
PATIENCE = 300.0
_LOOK_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Stops them; 0, or 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    try:
        (seconds,) = (float(word) for word in words or [str(PATIENCE)])
        if not 0 <= seconds < float("inf"):
            raise ValueError
    except ValueError:
        print(
            f"stop_server: a number of seconds is expected, not {' '.join(words)!r}\n{USAGE}", end="", file=sys.stderr
        )
        return 2
    _stop(running(), seconds)
    print("all process terminated.")
    return 0


def _stop(servers: list[Started], seconds: float) -> None:
    for server in servers:
        server.signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(server.running for server in servers) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    for server in servers:
        if server.running:
            print(f"killing process {server.pid}, which still runs after {seconds:g} s", flush=True)
            server.signal(signal.SIGKILL)  # its processes end with it
    while any(server.running for server in servers) and time.monotonic() < deadline + 5:
        time.sleep(_LOOK_SECONDS)
    for server in servers:
        server.forget()


if __name__ == "__main__":
    sys.exit(main())
