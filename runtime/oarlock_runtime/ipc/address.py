"""Where the engine's socket lies: a unix socket in a directory that only this user can enter."""

from pathlib import Path

from oarlock_runtime.errors import SettingError

SOCKET_NAME = "engine.sock"
LONGEST_PATH = 107  # of a unix socket, in bytes, on Linux


def engine_address(run_dir: Path) -> str:
    """The path of the engine's socket in `run_dir`, which is made (mode 0700) if it isn't there.

    Raises SettingError when others could enter the directory, or its path is too long for a socket.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = run_dir.stat().st_mode & 0o777
    if mode & 0o077:
        raise SettingError(f"run directory {run_dir} has mode {mode:04o}; it must be 0700, for its owner alone")
    path = run_dir.resolve() / SOCKET_NAME
    if len(str(path).encode()) > LONGEST_PATH:
        raise SettingError(f"the path of socket {path} is longer than {LONGEST_PATH} bytes; give a shorter run_dir")
    return str(path)
