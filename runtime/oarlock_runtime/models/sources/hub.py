"""Models on the Hugging Face hub: hf://org/name[@revision][/file.gguf].

huggingface_hub names the files, their sizes and checksums, and knows endpoint and token from the usual variables
(HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE); the bytes come through our own downloader, which resumes and checks them.
"""

import re
import time
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.safetensors_reader import INDEX, SINGLE
from oarlock_runtime.models.sources.cache import CacheEntry
from oarlock_runtime.models.sources.download import Downloader, RemoteFile
from oarlock_runtime.models.sources.web import OPTIONAL_FILES, TOKENIZER_FILES, shard_names

ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[\w./-]+\.gguf))?/?")

# Of the HTTP client that huggingface_hub brings along: which one that is differs between its versions.
_HTTPError = cast(type[Exception], HfHubHTTPError.__bases__[0])


def fetch_hub(uri: str, entry: CacheEntry, downloader: Downloader, endpoint: str | None = None) -> Path:
    """Fetches into the entry and completes it. `endpoint` replaces HF_ENDPOINT."""
    address = ADDRESS.fullmatch(uri)
    if address is None:
        raise SourceError(f"{uri}: must be hf://organisation/name, with @revision or /file.gguf if wanted")
    repo, wanted = address["repo"], address["file"]
    info = _describe(uri, repo, address["revision"], downloader, endpoint)
    remotes = {file.rfilename: _remote(info, file, endpoint) for file in info.siblings or []}
    ggufs = [name for name in remotes if name.endswith(".gguf")]
    if wanted or (SINGLE not in remotes and INDEX not in remotes):
        name = _only_gguf(uri, ggufs, wanted)
        downloader.meter.expect(remotes[name].size)
        downloader.fetch(remotes[name], entry.folder)
        return entry.complete([remotes[name].name], remotes[name].name)
    names = [name for name in ("config.json", *TOKENIZER_FILES, *OPTIONAL_FILES) if name in remotes]
    weights = [SINGLE]
    if INDEX in remotes:
        names.append(INDEX)
        downloader.fetch(remotes[INDEX], entry.folder)
        weights = shard_names(entry.folder / INDEX)
    missing = [name for name in ("config.json", *weights) if name not in remotes]
    if missing:
        raise SourceError(f"{uri}: has no {missing[0]}")
    sizes = [remotes[name].size for name in [*names, *weights]]
    downloader.meter.expect(sum(size for size in sizes if size is not None) if None not in sizes else None)
    for name in [*names, *weights]:
        downloader.fetch(remotes[name], entry.folder)
    return entry.complete([*names, *weights], ".")


def _describe(uri: str, repo: str, revision: str | None, downloader: Downloader, endpoint: str | None) -> Any:
    """The hub's description of a repository: its commit, and its files with sizes and checksums."""
    limits = downloader.limits
    hub = HfApi(endpoint=endpoint)
    downloader.meter.note("downloading", "asking the hub for the list of files", file=repo)
    for attempt in range(limits.attempts):
        if attempt:
            time.sleep(min(limits.backoff_s * 2 ** (attempt - 1), limits.longest_backoff_s))
        try:
            return hub.model_info(repo, revision=revision, files_metadata=True, timeout=limits.connect_s)
        except OfflineModeIsEnabled as error:
            raise SourceError(f"{uri}: is not in the cache, and HF_HUB_OFFLINE is set") from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            if status not in (408, 429) and status < 500:
                hint = "; private and gated models need a token (HF_TOKEN)" if status in (401, 403) else ""
                raise SourceError(f"{uri}: {_first_line(error)}{hint}") from error
            reason: Exception = error
        except (_HTTPError, OSError) as error:
            reason = error
        downloader.meter.note("retrying", _first_line(reason))
    raise SourceError(f"{uri}: {hub.endpoint}: {_first_line(reason)} (tried {limits.attempts} times)") from reason


def _remote(info: Any, file: Any, endpoint: str | None) -> RemoteFile:
    url = hf_hub_url(info.id, file.rfilename, revision=info.sha, endpoint=endpoint)
    token = get_token()
    return RemoteFile(
        url=url,
        name=file.rfilename.rpartition("/")[2],
        size=file.size,
        sha256=file.lfs.sha256 if file.lfs else None,
        headers={"authorization": f"Bearer {token}"} if token else {},
    )


def _only_gguf(uri: str, ggufs: list[str], wanted: str | None) -> str:
    if wanted:
        if wanted not in ggufs:
            raise SourceError(f"{uri}: has no {wanted}; its GGUF files are {', '.join(ggufs) or 'none'}")
        return wanted
    if not ggufs:
        raise SourceError(f"{uri}: has neither {SINGLE}, {INDEX} nor a .gguf file")
    if len(ggufs) > 1:
        raise SourceError(f"{uri}: has {len(ggufs)} GGUF files; add one of them: /{', /'.join(ggufs)}")
    return ggufs[0]


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
