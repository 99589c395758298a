"""PaddleNLP's log files: who writes where, and what the console still shows."""

import io
import os
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from support.served import Served, until

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.log_files import LogFiles
from oarlock_runtime.server.reporter import PlainReporter, reporter_of
from oarlock_runtime.settings import Settings


@pytest.mark.conformance(28)
def test_lines_are_sorted_by_who_says_them(tmp_path: Path) -> None:
    console = io.StringIO()
    files = LogFiles(tmp_path / "log", 7, PlainReporter(console))
    for line in ("starting", "engine: INFO loaded", "rank-2: INFO there", "server-1: ERROR bad", "engine room"):
        files.line(line)
    files.progress("loading weights", 1.0)
    files.close()
    texts = {path.name: path.read_text() for path in (tmp_path / "log").iterdir()}
    assert set(texts) == {"server.log", "workerlog.0", "workerlog.2", "http_server.log"}
    assert texts["workerlog.0"].endswith("INFO loaded\n") and texts["workerlog.2"].endswith("INFO there\n")
    assert texts["http_server.log"].endswith("ERROR bad\n")
    assert texts["server.log"].count("\n") == 6 and "engine: INFO loaded" in texts["server.log"]
    assert console.getvalue().startswith("starting\n")


def test_the_console_setting_is_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with ExitStack() as stack:
            settings = Settings(log_dir=str(tmp_path), log_to_console=shown)
            reporter_of(settings, None, stack).line("hello")
        out, err = capfd.readouterr()
        assert (out, err) == ("hello\n" if shown else "", "")
    assert isinstance(reporter_of(Settings(), None, ExitStack()), PlainReporter)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="--log-dir"):
        LogFiles(tmp_path / "file", 7, None)


@pytest.mark.conformance(28)
def test_a_server_writes_its_log(tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = Served(tiny_model, tmp_path, "--log-dir", str(log), "--no-log-to-console", "--access-log")
    try:
        until(lambda: server.process.poll() is not None or server.health("ready") == 0, 60)
        httpx.post(server.url + "/v1/chat/completions", json={"text": "a", "max_dec_len": 2}, timeout=60)
        until(lambda: (log / "http_server.log").exists())
        assert "Oarlock is ready" in (log / "server.log").read_text() and (log / "workerlog.0").exists()
        assert os.access(log / "server.log", os.R_OK) and server.output == ""
    finally:
        server.process.kill()
        server.wait()
