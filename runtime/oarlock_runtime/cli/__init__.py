"""The command line `oarlock serve|chat|bench|download|model`, in the user's process; `serve` is the supervisor."""

from oarlock_runtime.cli.dispatch import main

__all__ = ["main"]
