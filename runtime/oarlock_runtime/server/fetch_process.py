"""The process that fetches a model from a remote address before anything is loaded; it ends when the model is there."""

from pathlib import Path
from typing import Any

from oarlock_runtime.models.sources import Host, Progress, resolve
from oarlock_runtime.server.control import Control
from oarlock_runtime.server.place import place_of
from oarlock_runtime.server.process import run
from oarlock_runtime.settings import Settings


def main(control: Control, settings: Settings, first: dict[str, Any]) -> None:
    def report(progress: Progress) -> None:
        if progress.total and progress.state == "downloading":
            control.send("loading", what=f"downloading {progress.file}", share=progress.done / progress.total)

    kept = Path(settings.paddle_dir).expanduser() if settings.paddle_dir else None
    host = Host(settings.nnodes, place_of(settings).node == 0)
    path = resolve(settings.model, Path(settings.cache_dir), report, paddle_dir=kept, host=host)
    control.send("ready", path=str(path))


if __name__ == "__main__":
    run(main)
