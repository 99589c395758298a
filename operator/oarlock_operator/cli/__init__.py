"""The `oarlock-operator` command: run it in a cluster, play it on this machine, or show what it would make."""

from oarlock_operator.cli.main import main

__all__ = ["main"]
