"""Models at a plain web address: a .gguf file, or a directory (an address ending in /) of Hugging Face files."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.safetensors_reader import INDEX, SINGLE
from oarlock_runtime.models.sources.cache import CacheEntry
from oarlock_runtime.models.sources.download import Downloader, RemoteFile

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
OPTIONAL_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def fetch_web(uri: str, entry: CacheEntry, downloader: Downloader) -> Path:
    """Fetches into the entry and completes it."""
    parts = urlsplit(uri)
    url = parts._replace(fragment="").geturl()
    name = unquote(parts.path.rpartition("/")[2])
    if name.endswith(".gguf"):
        sha256 = _digest_in(parts.fragment, uri) or _digest_beside(url, bool(parts.query), entry.folder, downloader)
        downloader.fetch(RemoteFile(url, name, sha256=sha256, last=True), entry.folder)
        return entry.complete([name], name)
    if name:
        raise SourceError(f"{uri}: must end in .gguf, or in / for a directory with config.json and safetensors")
    return _fetch_directory(url, entry, downloader)


def _fetch_directory(url: str, entry: CacheEntry, downloader: Downloader) -> Path:
    def fetch(name: str, optional: bool = False, last: bool = False) -> bool:
        return downloader.fetch(RemoteFile(urljoin(url, name), name, optional=optional, last=last), entry.folder)

    fetch("config.json")
    names = ["config.json", *(name for name in OPTIONAL_FILES if fetch(name, optional=True))]
    tokenizer = [name for name in TOKENIZER_FILES if fetch(name, optional=True)]
    if not tokenizer:
        raise SourceError(f"{url}: has neither {' nor '.join(TOKENIZER_FILES)}")
    names += tokenizer
    weights = [SINGLE]
    if fetch(INDEX, optional=True):
        names.append(INDEX)
        weights = shard_names(entry.folder / INDEX)
    sizes = [downloader.size(urljoin(url, name)) for name in weights] if len(weights) > 1 else [None]
    if None not in sizes:
        downloader.meter.expect_more(sum(size for size in sizes if size is not None))
    for name in weights:
        fetch(name, last=name == weights[-1] and None in sizes)
    return entry.complete([*names, *weights], ".")


def shard_names(index: Path) -> list[str]:
    """File names of a safetensors index, each a plain name."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
            return names
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    index.unlink()
    raise SourceError(f"{index.name}: weight_map: is not a table from tensor names to .safetensors files")


def _digest_in(fragment: str, uri: str) -> str | None:
    if not fragment:
        return None
    digest = fragment.removeprefix("sha256=")
    if digest == fragment or not SHA256.fullmatch(digest):
        raise SourceError(f"{uri}: what follows # must be sha256= and 64 hexadecimal digits")
    return digest


def _digest_beside(url: str, signed: bool, folder: Path, downloader: Downloader) -> str | None:
    """The checksum that some servers keep next to a file, as FILE.sha256."""
    name = "checksum"
    if signed or not downloader.fetch(RemoteFile(url + ".sha256", name, optional=True), folder):
        return None
    digest = (folder / name).read_bytes()[:64].decode("ascii", "replace")
    (folder / name).unlink()
    return digest if SHA256.fullmatch(digest) else None
