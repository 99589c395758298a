"""paddle:// and download_model.py, against a server of PaddleNLP's layout on this machine."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import FileServer, serve_files
from support.paddle_split import split_directory
from support.tiny import tiny_checkpoint

from oarlock_runtime.cli.paddle import download_model
from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.sources import FetchLimits, resolve
from oarlock_runtime.models.sources.paddle import PaddleAddress
from oarlock_runtime.models.sources.paddle_catalogue import CATALOGUE, Host, part_for

QUICK = FetchLimits(connect_s=2, stall_s=0.3, attempts=3, backoff_s=0.01, longest_backoff_s=0.05, lock_s=0.5)
ONE = "Qwen/Qwen2-1.5B-Instruct-Block-Attn/float16"
TWO = "deepseek-ai/DeepSeek-R1-MTP-2nodes/weight_only_int8"
FILES = {"config.json": b'{"model_type": "qwen2"}', "rank_0/model.pdiparams": bytes(range(256)) * 4096}


def put(server: FileServer, name: str, part: str, files: dict[str, bytes] = FILES, tag: str = "3.0.0.b4") -> str:
    """A model on the server; its path there."""
    where = f"/{tag}/{name}/{part}"
    lines = [f"{file}:{hashlib.md5(content).hexdigest()}\n" for file, content in files.items()]
    server.files[f"{where}/file_list.txt"] = "".join(lines).encode()
    server.files |= {f"{where}/{file}": content for file, content in files.items()}
    return where


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve_files() as state:
        monkeypatch.setenv("PADDLE_MODELS_URL", state.url)
        for name in ("tag", "MP_NNODE", "NODE_RANK", "POD_0_IP", "HOST_IP", "MD5_CHECK"):
            monkeypatch.delenv(name, raising=False)
        yield state


def fetched(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.conformance(30)
@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_every_name_of_the_catalogue_has_its_parts(model: object, server: FileServer, tmp_path: Path) -> None:
    assert model in CATALOGUE
    for part in model.parts:
        put(server, model.name, part, {"config.json": part.encode()})
    ranks = [Host(model.nodes, master) for master in (True, False)][: model.nodes]
    parts = [part_for(model.name, host) for host in ranks] + (["mtp"] if model.draft else [])
    assert tuple(parts) == model.parts
    for part in parts:
        path = resolve(f"paddle://{model.name}#{part}", tmp_path / part, limits=QUICK)
        assert (path / "config.json").read_bytes() == part.encode()


def test_the_catalogue_has_the_names_that_paddlenlp_documents() -> None:
    names = {model.name for model in CATALOGUE}
    assert len(names) == len(CATALOGUE) == 31
    assert {model.name for model in CATALOGUE if model.nodes == 2} == {
        f"deepseek-ai/DeepSeek-R1-{kind}2nodes/{variant}"
        for kind in ("", "MTP-")
        for variant in ("weight_only_int8", "a8w8_fp8")
    }
    assert {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B/weight_only_int8", ONE, TWO} <= names


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"MP_NNODE": "2", "POD_0_IP": "10.0.0.1", "HOST_IP": "10.0.0.1"}, "node1"),
        ({"MP_NNODE": "2", "POD_0_IP": "10.0.0.1", "HOST_IP": "10.0.0.2"}, "node2"),
        ({"MP_NNODE": "2", "NODE_RANK": "0"}, "node1"),
        ({"MP_NNODE": "2", "NODE_RANK": "1"}, "node2"),
    ],
)
def test_each_host_of_a_group_gets_its_own_part(environ: dict[str, str], part: str) -> None:
    assert PaddleAddress.of(f"paddle://{TWO}", environ).part == part
    assert PaddleAddress.of(f"paddle://{TWO}", {}, Host(2, part == "node1")).part == part
    assert PaddleAddress.of(f"paddle://{TWO}#mtp", environ).part == "mtp"
    assert PaddleAddress.of(f"paddle://{ONE}", environ).part == "model"  # each host cuts its share of the whole


@pytest.mark.parametrize(
    ("uri", "environ", "words"),
    [
        (f"paddle://{TWO}", {}, "2 nodes; this group has 1"),
        (f"paddle://{TWO}", {"MP_NNODE": "4"}, "2 nodes; this group has 4"),
        ("paddle://Qwen/Own", {"MP_NNODE": "3"}, "models are kept for 1 or 2 nodes; this group has 3"),
        (f"paddle://{ONE}", {"MP_NNODE": "x"}, "MP_NNODE='x'"),
        (f"paddle://{ONE}#node3", {}, "node1"),
        ("paddle://Qwen/Qwen2-1.5B-Instruct-Block-Atn/float16/../x", {}, "near are Qwen/"),
        ("paddle://bert/base", {}, "no model of PaddleNLP's catalogue"),
        ("paddle://", {}, "no model"),
    ],
)
def test_an_address_that_names_no_model_is_refused(uri: str, environ: dict[str, str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        PaddleAddress.of(uri, environ)


@pytest.mark.conformance(29)
def test_a_cut_download_is_resumed_and_found_again(server: FileServer, tmp_path: Path) -> None:
    where = put(server, ONE, "model")
    server.faults += [("none",), ("none",), ("cut", 1000)]
    folder = resolve(f"paddle://{ONE}", tmp_path, limits=QUICK)
    assert fetched(folder) == FILES
    assert (f"{where}/rank_0/model.pdiparams", "bytes=1000-") in server.log
    before = len(server.log)
    assert resolve(f"paddle://{ONE}", tmp_path, limits=QUICK) == folder and len(server.log) == before


@pytest.mark.conformance(29)
def test_a_file_with_another_md5_is_refused(server: FileServer, tmp_path: Path) -> None:
    where = put(server, ONE, "model")
    server.files[f"{where}/config.json"] = b"something else"
    with pytest.raises(SourceError, match=r"config.json: its md5 is .*fetched twice"):
        resolve(f"paddle://{ONE}", tmp_path, limits=QUICK)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "names no file"),
        (b"config.json\n", "line 1 is no `relative/path:md5`"),
        (b"../../etc/passwd:" + b"0" * 32, "line 1 is no"),
        (b"/etc/passwd:" + b"0" * 32, "line 1 is no"),
        (b"a/../../b:" + b"0" * 32, "line 1 is no"),
        (b"\nconfig.json:xyz\n", "line 2 is no"),
    ],
)
def test_a_list_that_can_not_be_trusted_is_refused(server: FileServer, tmp_path: Path, text: bytes, words: str) -> None:
    server.files[f"/3.0.0.b4/{ONE}/model/file_list.txt"] = text
    with pytest.raises(SourceError, match=words):
        resolve(f"paddle://{ONE}", tmp_path, limits=QUICK)


@pytest.mark.conformance(29)
def test_both_hosts_parts_lie_in_a_folder_of_the_users_choice(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MP_NNODE", "2")
    for rank, part in enumerate(("node1", "node2")):
        put(server, TWO, part, {"config.json": b"{}", f"rank_{rank}/model.pdiparams": b"w%d" % rank})
    for rank in ("0", "1"):
        monkeypatch.setenv("NODE_RANK", rank)
        folder = resolve(f"paddle://{TWO}", tmp_path / "cache", limits=QUICK, paddle_dir=tmp_path / "models")
        assert folder.samefile(tmp_path / "models" / TWO)
        assert (folder / f"rank_{rank}/model.pdiparams").read_bytes() == b"w" + rank.encode()


def test_a_host_serves_its_rank_of_what_it_fetched(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path, "qwen2", "bf16")
    exported = split_directory(tmp_path / "exported", source, 2)
    monkeypatch.setenv("MP_NNODE", "2")
    for rank in range(2):
        names = ["config.json", f"rank_{rank}/model.json", f"rank_{rank}/model.pdiparams"]
        put(server, TWO, f"node{rank + 1}", {name: (exported / name).read_bytes() for name in names})
    for rank in range(2):
        monkeypatch.setenv("NODE_RANK", str(rank))
        folder = resolve(f"paddle://{TWO}", tmp_path / f"host-{rank}", limits=QUICK)
        read = open_checkpoint(folder, rank=rank, world=2)
        assert {ref.file.path.parent.name for ref in read.refs.values()} == {f"rank_{rank}"}
        assert read.spec == source.spec


def download(*words: str) -> int:
    return download_model.main(words, QUICK)


@pytest.mark.conformance(29)
def test_the_command_fetches_the_parts_that_its_flags_ask_for(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("node1", "node2", "mtp"):
        put(server, TWO, part, {"config.json": part.encode()}, tag="9.9")
    monkeypatch.setenv("tag", "9.9")
    common = ("-m", TWO, "-n", "2", "-b", server.url)
    assert download(*common, "-d", str(tmp_path / "a"), "-s", str(tmp_path / "draft")) == 0
    assert (tmp_path / "a" / TWO / "config.json").read_bytes() == b"node1"
    assert (tmp_path / "draft" / "config.json").read_bytes() == b"mtp"
    assert f"[✓] Success: {tmp_path / 'a' / TWO / 'config.json'}" in capsys.readouterr().out
    assert download(*common, "--dir", str(tmp_path / "b"), "--mode", "slave") == 0
    assert (tmp_path / "b" / TWO / "config.json").read_bytes() == b"node2"


@pytest.mark.conformance(29)
def test_the_command_goes_on_after_a_failure_and_tells_by_its_exit_code(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = put(server, ONE, "model")
    del server.files[f"{where}/config.json"]
    assert download("-m", ONE, "-d", str(tmp_path)) == 1
    told = capsys.readouterr()
    failed = f"[\N{MULTIPLICATION SIGN}] Failed: {server.url}{where}/config.json"
    assert failed in told.out and "[✓] Success" in told.out and "HTTP 404" in told.err
    put(server, ONE, "model")
    assert download("-m", ONE, "-d", str(tmp_path)) == 0
    assert fetched(tmp_path / ONE) == FILES
    # A file that is there is taken as it is, unless it is to be checked.
    (tmp_path / ONE / "config.json").write_bytes(b"changed")
    assert download("-m", ONE, "-d", str(tmp_path)) == 0
    assert (tmp_path / ONE / "config.json").read_bytes() == b"changed"
    monkeypatch.setenv("MD5_CHECK", "1")
    assert download("-m", ONE, "-d", str(tmp_path)) == 0
    assert fetched(tmp_path / ONE) == FILES


@pytest.mark.conformance(29)
def test_the_command_refuses_what_makes_no_sense(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert download("-n", "0") == 2
    assert download("-m", "bert") == 2
    assert download("-m", TWO, "-d", str(tmp_path)) == 2
    told = capsys.readouterr().err
    assert "--nnodes=0" in told and "'bert' is no model" in told and "2 nodes" in told
    assert download("--list") == 0
    assert f"{TWO}  node1 node2 mtp" in capsys.readouterr().out


@pytest.mark.conformance(29)
def test_a_list_that_is_not_there_is_a_failure(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download("-m", ONE, "-d", str(tmp_path)) == 1
    assert "file_list.txt: HTTP 404" in capsys.readouterr().err
