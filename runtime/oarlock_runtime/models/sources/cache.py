"""Where fetched models are kept: one folder an address, complete once its marker is written.

Runs wherever models are fetched. Files arrive under a `.part` name and are renamed when they are whole and checked; the
marker, written last, lists them with their sizes. One process at a time fills a folder;
the others wait for it, for a limited time.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oarlock_runtime.models.errors import SourceError

MARKER = ".complete.json"
LOCK = ".lock"


class CacheEntry:
    """The folder of one address below the cache directory. Several parts, by name, may share a folder."""

    def __init__(self, cache_dir: Path, uri: str, part: str = "") -> None:
        scheme, _, rest = uri.partition("://")
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", rest.partition("#")[0].partition("?")[0]).strip("-.")[-80:]
        digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
        self.uri = uri
        self._marker, self._lock = (f".{part}{name}" if part else name for name in (MARKER, LOCK))
        self.folder = cache_dir / scheme / f"{readable}-{digest}"

    def found(self) -> Path | None:
        """What was fetched earlier: the folder or the one file in it, if the marker and all files are there."""
        try:
            marker: dict[str, Any] = json.loads((self.folder / self._marker).read_text(encoding="utf-8"))
            whole = all((self.folder / name).stat().st_size == size for name, size in marker["files"].items())
            return self.folder / marker["result"] if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def complete(self, files: list[str], result: str) -> Path:
        """Writes the marker. `result` is the file to serve, or "." for the folder."""
        sizes = {name: (self.folder / name).stat().st_size for name in files}
        marker = {"uri": self.uri.partition("?")[0], "result": result, "files": sizes}
        write_atomically(self.folder / self._marker, json.dumps(marker, indent=1).encode())
        return self.folder / result

    @contextmanager
    def locked(self, limit_s: float, waiting: Callable[[], None]) -> Iterator[None]:
        """Holds the folder's lock; `waiting` is called once when another process has it. SourceError after limit_s."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / self._lock).open("w")
        except OSError as error:
            raise SourceError(f"{self.folder}: can't be written: {error.strerror}") from error
        with lock:
            deadline, told = time.monotonic() + limit_s, False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise SourceError(
                            f"{self.uri}: another process has held {self.folder} for over {limit_s:.0f} s"
                        ) from error
                if not told:
                    told = True
                    waiting()
                time.sleep(0.2)
            yield  # closing the file releases the lock


def write_atomically(file: Path, content: bytes) -> None:
    """Replaces `file`, so that it has either its old or its new content, whatever happens."""
    partial = file.with_name(file.name + ".new")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
