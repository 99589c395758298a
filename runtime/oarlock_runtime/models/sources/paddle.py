"""PaddleNLP's ready-made models: paddle://organisation/name/variant[#part]. Runs wherever models are fetched.

They lie at BASE/TAG/NAME/PART/, where `file_list.txt` names each file and its md5. The variables PADDLE_MODELS_URL and
`tag` replace base and tag, so that a mirror can take the server's place.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.sources.cache import CacheEntry
from oarlock_runtime.models.sources.download import Downloader, RemoteFile
from oarlock_runtime.models.sources.paddle_catalogue import PARTS, Host, check_name, part_for

BASE_URL, TAG = "https://paddlenlp.bj.bcebos.com/models/static", "3.0.0.b4"
LIST = "file_list.txt"
_LINE = re.compile(r"(?P<name>.+):(?P<md5>[0-9a-fA-F]{32})")
_SAFE = re.compile(r"(?!\.)[^/\\\0]+(/(?!\.)[^/\\\0]+)*")  # no absolute path, no .., nothing hidden
_MOST_FILES = 100_000


@dataclass(frozen=True)
class PaddleAddress:
    """One part of one model, and where it is fetched from."""

    name: str
    part: str
    base_url: str = BASE_URL
    tag: str = TAG

    @classmethod
    def of(cls, uri: str, environ: Mapping[str, str] = os.environ, host: Host | None = None) -> Self:
        """From paddle://name[#part]; without a part the one for `host`, or for the environment's. SourceError."""
        name, _, part = uri.removeprefix("paddle://").partition("#")
        name = name.strip("/")
        if part and part not in PARTS:
            raise SourceError(f"{uri}: after # comes one of {', '.join(PARTS)}")
        check_name(name)
        return cls(name, part or part_for(name, host or Host.of(environ)), **server_of(environ))

    @property
    def url(self) -> str:
        return "/".join((self.base_url.rstrip("/"), quote(self.tag), quote(self.name), self.part))

    def entry(self, cache_dir: Path) -> CacheEntry:
        """Where it is kept in the cache."""
        return CacheEntry(cache_dir, f"paddle://{self.name}#{self.url}", self.part)

    def entry_in(self, folder: Path) -> CacheEntry:
        """The same in a folder of the user's choice, where a model's other parts may lie too."""
        entry = self.entry(folder)
        entry.folder = folder
        return entry


def server_of(environ: Mapping[str, str]) -> dict[str, str]:
    """`base_url` and `tag`, as far as the environment has them."""
    given = {"base_url": environ.get("PADDLE_MODELS_URL", "").strip(), "tag": environ.get("tag", "").strip()}
    return {name: text for name, text in given.items() if text}


def is_to_check(environ: Mapping[str, str]) -> bool:
    """Whether MD5_CHECK asks to check files that are there already."""
    return environ.get("MD5_CHECK", "").strip() == "1"


def fetch_paddle(
    address: PaddleAddress,
    entry: CacheEntry,
    downloader: Downloader,
    *,
    check_present: bool = False,
    told: Callable[[str, SourceError | None], None] | None = None,
) -> Path:
    """Fetches all files of a part into the entry and completes it.

    A file that is there is taken as it is; with `check_present` only if its md5 is right. `told` hears of each file
    how it went, and then one that fails does not hinder the others. SourceError at the first failure, or with `told`
    at the end.
    """
    files = _listed(address, entry.folder, downloader)
    failed: list[str] = []
    for name, md5 in files.items():
        remote = RemoteFile(f"{address.url}/{quote(name)}", name, md5=md5)
        try:
            if check_present and not _right(entry.folder / name, md5):
                (entry.folder / name).unlink(missing_ok=True)
            downloader.fetch(remote, entry.folder)
        except SourceError as error:
            if told is None:
                raise
            failed.append(name)
            told(remote.url, error)
        else:
            if told is not None:
                told(str(entry.folder / name), None)
    if failed:
        raise SourceError(f"{address.name}: {len(failed)} of {len(files)} files could not be fetched: {failed[0]}, …")
    return entry.complete(list(files), ".")


def _listed(address: PaddleAddress, folder: Path, downloader: Downloader) -> dict[str, str]:
    """md5 of each file by its name, from the part's list. SourceError for a list that can't be had or trusted."""
    url = f"{address.url}/{LIST}"
    downloader.fetch(RemoteFile(url, f".{LIST}"), folder)
    kept = folder / f".{LIST}"
    lines = kept.read_text(encoding="utf-8", errors="replace").split("\n")
    kept.unlink()
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or not _SAFE.fullmatch(match["name"]) or len(found) == _MOST_FILES:
            raise SourceError(f"{url}: line {number} is no `relative/path:md5`: {line.strip()[:80]!r}")
        found[match["name"]] = match["md5"].lower()
    if not found:
        raise SourceError(f"{url}: names no file")
    return found


def _right(file: Path, md5: str) -> bool:
    """Whether a file is there with that md5."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
    except OSError:
        return False
