"""`start_server [MODEL_NAME]` as PaddleNLP has it: checks, starts the server in the background and returns.

Runs in the user's process; what it starts is `oarlock serve` with PaddleNLP's defaults. As the first process of a
container, which ends with it, it becomes the server instead.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from oarlock_runtime.cli.paddle.started import Started
from oarlock_runtime.errors import OarlockError, SettingError
from oarlock_runtime.models.checkpoint import model_file
from oarlock_runtime.models.sources.paddle_catalogue import check_name
from oarlock_runtime.server.paddle.environment import check, with_defaults
from oarlock_runtime.server.place import place_of
from oarlock_runtime.server.ports import is_free
from oarlock_runtime.settings import Settings

USAGE = """usage: start_server [MODEL_NAME]

Starts a server in the background, with PaddleNLP's environment variables and their defaults, and returns.
MODEL_NAME: a name of PaddleNLP's catalogue, fetched into MODEL_DIR/MODEL_NAME unless it is there, or a directory below
MODEL_DIR; without it MODEL_DIR itself is served. OARLOCK_PADDLE_DEFAULTS=documented takes the defaults of PaddleNLP's
documentation. The log is in log/, or in FD_LOG_DIR; stop_server stops the server. As a container's first process
start_server does not return but becomes the server, with its log on standard output too.
"""
SERVE = ("-m", "oarlock_runtime.cli", "serve")
PORTS = ("port", "grpc_port", "health_port", "metrics_port", "group_port")
LOOPBACK = "127.0.0.1"
SHM = Path("/dev/shm")
SHM_BYTES = 5 << 30  # what PaddleNLP asks for
_DEFAULTS = {  # PaddleNLP's server listens on all addresses and lets running requests finish for so long
    "OARLOCK_HOST": "0.0.0.0",
    "OARLOCK_DRAIN_SECONDS": "300",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the server; 0 when it was started, 1 when something stands in the way, 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(words) > 1 or (words and words[0].startswith("-")):
        print(f"start_server: one MODEL_NAME is expected, not {' '.join(words)!r}\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        return _start(words[0] if words else "")
    except (OarlockError, OSError) as error:
        print(f"start_server: {error}")
        return 1


def _start(name: str) -> int:
    environ = with_defaults(
        {**_DEFAULTS, "DEVICE": _device(), **{key: text for key, text in os.environ.items() if text}}
    )
    for warning in check(environ):
        print(f"warning: {warning}")
    environ |= addresses_of(environ) | model_of(environ, name or environ.get("model_name", ""))
    settings = Settings.load([], environ)
    place = place_of(settings)
    _check_here(settings)
    busy = busy_port(settings)
    if busy:
        print(f"PORT: {busy} occupied! Please change the port!")
        return 1
    if (small := shm_warning()) is not None:
        print(f"warning: {small}")
    log = _log_folder(settings)
    print("Master node, start serving ..." if place.node == 0 else "Slave node, start push mode", flush=True)
    if os.getpid() == 1:
        os.execve(sys.executable, [sys.executable, *SERVE], environ | {"OUTPUT_LOG_TO_CONSOLE": "1"})
    started = _launch(log, settings.log_to_console, environ)
    print(f"the server is process {started.pid}; its log is {log}/server.log")
    return 0


def addresses_of(environ: Mapping[str, str]) -> dict[str, str]:
    """This host's address and the master's, as far as PaddleNLP's script finds them by itself."""
    if environ["MP_NNODE"].strip() == "1":
        return {"POD_0_IP": LOOPBACK, "HOST_IP": LOOPBACK}
    try:
        return {"HOST_IP": environ.get("HOST_IP", "").strip() or socket.gethostbyname(socket.gethostname())}
    except OSError:
        return {}


def model_of(environ: Mapping[str, str], name: str) -> dict[str, str]:
    """What the server is told about its model. SourceError for a name that is neither a directory nor known."""
    if not name:
        return {}
    if "://" in name:
        return {"MODEL_DIR": name}
    folder = Path(environ["MODEL_DIR"])
    there = folder / name
    # A directory that another tool has filled is served as it is; what we began to fetch, we complete.
    if there.is_file() or (there.is_dir() and any(there.iterdir()) and not any(there.glob(".*.lock"))):
        served = "OARLOCK_SERVED_MODEL_NAME"
        return {"MODEL_DIR": str(there), served: environ.get(served, name)}
    check_name(name)
    there.mkdir(parents=True, exist_ok=True)
    return {"MODEL_DIR": f"paddle://{name}", "OARLOCK_PADDLE_DIR": str(folder)}


def busy_port(settings: Settings) -> int:
    """The first port that somebody listens on, 0 for none."""
    ports = [port for port in (getattr(settings, name) for name in PORTS) if port]
    return next((port for port in ports if not is_free(settings.host, port)), 0)


def _device() -> str:
    """PaddleNLP's server needs a GPU; ours takes the CPU where there is none, or where the build has no CUDA."""
    from oarlock_runtime import _C

    return "gpu" if "cuda" in _C.devices() and Path("/dev/nvidiactl").exists() else "cpu"


def _check_here(settings: Settings) -> None:
    """Raises for what would end the server as soon as it runs: no such model, or a device that the build lacks."""
    from oarlock_runtime import _C

    if settings.device not in _C.devices():
        raise SettingError(f"DEVICE: this build has no {settings.device}; it runs models on {', '.join(_C.devices())}")
    if "://" not in settings.model:
        model_file(Path(settings.model).expanduser())


def shm_warning() -> str | None:
    """What to say when /dev/shm is smaller than PaddleNLP asks for."""
    try:
        total = shutil.disk_usage(SHM).total
    except OSError:
        return f"there is no {SHM}"
    if total >= SHM_BYTES:
        return None
    return f"{SHM} has {total >> 20} MiB; PaddleNLP asks for {SHM_BYTES >> 30} GiB (docker run --shm-size 32G)"


def _log_folder(settings: Settings) -> Path:
    """Where the log is to be, made if it is not there."""
    folder = Path(settings.log_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"FD_LOG_DIR={settings.log_dir} can't be made: {error.strerror}") from None
    return folder


def _launch(log: Path, console: bool, environ: dict[str, str]) -> Started:
    """Starts `oarlock serve`, which outlives us and keeps its log in files of the folder `log`."""
    with (log / "console.log").open("ab") as file:
        # With a console, what comes before and beside the log goes where our own words go.
        server = subprocess.Popen(
            [sys.executable, *SERVE],
            stdin=subprocess.DEVNULL,
            stdout=None if console else file,
            stderr=None if console else file,
            env=environ,
            start_new_session=True,
        )
    server.returncode = 0  # it is to go on: nobody waits for it
    return Started.record(server.pid)


if __name__ == "__main__":
    sys.exit(main())
