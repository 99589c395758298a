"""What every process that the supervisor starts does first and last: it dies with its parent, and says why it ends."""

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from oarlock_runtime.errors import OarlockError
from oarlock_runtime.server.control import Control
from oarlock_runtime.settings import Settings

_PR_SET_PDEATHSIG = 1


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import json

        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def set_up_logging(settings: Settings) -> None:
    """Log lines go to stderr, which the supervisor passes on under the process's name."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the supervisor is gone, even if that was killed itself."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def allow_many_files() -> None:
    """Raises the limit of open files as far as it goes: each client is one, and 1024 would be few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(main: Callable[[Control, Settings, dict[str, Any]], None]) -> None:
    """The frame of `python -m MODULE CONTROL_FD PARENT_PID`: calls main(control, settings, first message)."""
    die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business
    allow_many_files()
    control = Control(socket.socket(fileno=int(sys.argv[1])))
    first = control.receive()
    if first is None:
        sys.exit(1)
    settings = Settings.from_json(first["settings"])
    set_up_logging(settings)
    try:
        main(control, settings, first)
    except OarlockError as error:
        control.send("error", message=str(error))
        sys.exit(1)
    except MemoryError:
        control.send("error", message="out of memory")
        raise
