"""Fetches files over HTTP: resumed where a connection was cut, checked, retried with growing pauses.

Runs wherever models are fetched. A server that sends nothing, or next to nothing, for a while counts as a cut.
"""

import hashlib
import json
import os
import random
import shutil
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from oarlock_runtime import __version__
from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.sources.cache import write_atomically
from oarlock_runtime.models.sources.progress import Meter

SLOWEST = 256  # bytes a second; less than that over stall_s is a stall
SPARE_DISK = 64 << 20


@dataclass(frozen=True)
class FetchLimits:
    """How long anything is waited for, in seconds, and how often it is tried without getting any further."""

    connect_s: float = 15.0
    stall_s: float = 30.0
    attempts: int = 6
    backoff_s: float = 1.0
    longest_backoff_s: float = 60.0
    lock_s: float = 3600.0


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch. What is known of size, sha256 and md5 is checked; an optional one may be missing (404).

    After the last file of a model no other comes: once the server tells its size, that of the whole is known.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    optional: bool = False
    last: bool = False


class _Cut(Exception):
    """The transfer ended early; trying again may help. `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Downloader:
    """Fetches files into a folder over one pool of connections."""

    def __init__(self, limits: FetchLimits, meter: Meter) -> None:
        self.limits = limits
        self.meter = meter
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(limits.connect_s, read=limits.stall_s, write=limits.stall_s),
            headers={"user-agent": f"oarlock/{__version__}", "accept-encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def fetch(self, remote: RemoteFile, folder: Path) -> bool:
        """Makes folder / remote.name. False when an optional file isn't there; SourceError when it can't be had.

        A file that is there already is taken as it is: files get their name only once they are checked.
        """
        target = folder / remote.name
        if target.exists():
            self.meter.begin(remote.name, target.stat().st_size)
            self.meter.finish()
            return True
        target.parent.mkdir(parents=True, exist_ok=True)
        transfer = _Transfer(self._client, remote, target, self.limits, self.meter)
        fruitless = 0
        while True:
            before = transfer.done
            try:
                found = transfer.run()
                self.meter.finish()
                return found
            except (_Cut, httpx.TransportError) as error:
                fruitless = 0 if transfer.done > before else fruitless + 1
                reason = str(error) or type(error).__name__
                if fruitless >= self.limits.attempts:
                    raise SourceError(f"{remote.url}: {reason} (tried {fruitless} times)") from error
                self._pause(error, fruitless, reason)

    def size(self, url: str) -> int | None:
        """Bytes of a file, where the server tells without sending it. Asked once: only the progress depends on it."""
        try:
            response = self._client.head(url)
        except httpx.HTTPError:
            return None
        return _total_of(response) if response.status_code == 200 else None

    def _pause(self, error: Exception, fruitless: int, reason: str) -> None:
        pause = min(self.limits.backoff_s * 2 ** max(fruitless - 1, 0), self.limits.longest_backoff_s)
        pause *= random.uniform(0.5, 1.0)
        if isinstance(error, _Cut):
            pause = max(pause, min(error.pause, self.limits.longest_backoff_s))
        self.meter.note("retrying", f"{reason}; again in {pause:.0f} s")
        time.sleep(pause)


class _Transfer:
    """One file on its way: what is here of it, and which version of it that is."""

    def __init__(
        self, client: httpx.Client, remote: RemoteFile, target: Path, limits: FetchLimits, meter: Meter
    ) -> None:
        self.client, self.remote, self.target, self.limits, self.meter = client, remote, target, limits, meter
        self.part = target.with_name(target.name + ".part")
        self.notes = target.with_name(target.name + ".part.json")
        self.corrupt = 0
        self.done = self.part.stat().st_size if self.part.exists() else 0
        self.version = self._known_version()
        if self.done and not self.version:
            self.restart()

    def run(self) -> bool:
        """One attempt to complete the file. Raises _Cut when it ended early; what came is kept."""
        headers = dict(self.remote.headers)
        if self.done:
            headers |= {"range": f"bytes={self.done}-", "if-range": self.version}
        self.meter.begin(self.remote.name, self.done)
        with self.client.stream("GET", self.remote.url, headers=headers) as response:
            if response.status_code == 404 and self.remote.optional:
                return False
            if response.status_code == 416:
                # Everything asked for may be here; if not, the file has changed.
                if self.done != _total_of(response):
                    self.restart()
                    raise _Cut("the server has no such part of the file")
            else:
                self._check_status(response)
                self._receive(response)
        self._verify()
        os.replace(self.part, self.target)
        self.notes.unlink(missing_ok=True)
        return True

    def restart(self) -> None:
        """Forgets what is here of the file."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.done, self.version = 0, ""

    def _receive(self, response: httpx.Response) -> None:
        if self.done and (response.status_code != 206 or _start_of(response) != self.done):
            self.restart()  # the server sends the file from its beginning, because it changed or can't do otherwise
            if response.status_code == 206:
                raise _Cut("the server sent another part of the file than was asked for")
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        total = None if encoded else _total_of(response)
        self._check_size(total)
        if self.remote.last and total is not None:
            self.meter.expect_more(total)
        if not self.done:
            self.version = _version_of(response)
            write_atomically(self.notes, json.dumps({"url": self.remote.url, "version": self.version}).encode())
        watch = _StallWatch(self.limits.stall_s)
        with self.part.open("ab") as file:
            for chunk in response.iter_bytes() if encoded else response.iter_raw():
                file.write(chunk)
                self.done += len(chunk)
                watch.saw(len(chunk))
                self.meter.at(self.done)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and self.done < total:
            raise _Cut(f"the connection ended after {self.done} of {total} bytes")
        if total is not None and self.done > total:
            self.restart()
            raise _Cut(f"the server sent more than the {total} bytes it announced")

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in (408, 425, 429) or status >= 500:
            raise _Cut(f"HTTP {status} {response.reason_phrase}", _retry_after(response))
        hint = "; is a token needed?" if status in (401, 403) else ""
        raise SourceError(f"{self.remote.url}: HTTP {status} {response.reason_phrase}{hint}")

    def _check_size(self, total: int | None) -> None:
        expected = self.remote.size
        if total is not None and expected is not None and total != expected:
            raise SourceError(f"{self.remote.url}: has {total} bytes; expected {expected}")
        needed = (total or expected or 0) - self.done
        free = shutil.disk_usage(self.target.parent).free
        if needed + SPARE_DISK > free:
            raise SourceError(
                f"{self.target.parent}: {needed >> 20} MiB more are needed for {self.remote.name}, "
                f"{free >> 20} MiB are free"
            )

    def _verify(self) -> None:
        if self.remote.size is not None and self.done != self.remote.size:
            self.restart()
            raise _Cut(f"{self.done} bytes came; expected {self.remote.size}")
        algorithm = "sha256" if self.remote.sha256 else "md5"
        expected = self.remote.sha256 or self.remote.md5
        if expected is None:
            return
        self.meter.note("verifying")
        with self.part.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if digest == expected.lower():
            return
        self.restart()
        self.corrupt += 1
        problem = f"its {algorithm} is {digest}; expected {expected.lower()}"
        if self.corrupt > 1:
            raise SourceError(f"{self.remote.url}: {problem} (fetched twice)")
        raise _Cut(problem)

    def _known_version(self) -> str:
        """The version that the partial file is of, "" when that isn't known."""
        try:
            notes: dict[str, Any] = json.loads(self.notes.read_text(encoding="utf-8"))
            return str(notes["version"]) if notes["url"] == self.remote.url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


class _StallWatch:
    """Raises _Cut when hardly anything came for a while; silence itself is the client's read timeout."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since = time.monotonic()
        self._bytes = 0

    def saw(self, count: int) -> None:
        self._bytes += count
        elapsed = time.monotonic() - self._since
        if elapsed < self._limit_s:
            return
        if self._bytes < SLOWEST * elapsed:
            raise _Cut(f"only {self._bytes} bytes came in {elapsed:.0f} s")
        self._since, self._bytes = time.monotonic(), 0


def _version_of(response: httpx.Response) -> str:
    """What identifies this version of the file, for If-Range: a strong ETag, else the date of its last change."""
    etag: str = response.headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return etag
    modified: str = response.headers.get("last-modified", "")
    return modified


def _total_of(response: httpx.Response) -> int | None:
    """Bytes of the whole file, where the response tells."""
    if response.status_code in (206, 416):
        total = response.headers.get("content-range", "").rpartition("/")[2]
    else:
        total = response.headers.get("content-length", "")
    return int(total) if total.isdigit() else None


def _start_of(response: httpx.Response) -> int | None:
    """The offset at which a partial response begins."""
    start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, 0 if it doesn't."""
    value: str = response.headers.get("retry-after", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
