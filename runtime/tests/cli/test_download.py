"""`oarlock download` as the process of a container."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from support.file_server import serve_files, wait_until

import oarlock_runtime


def download(uri: str, cache: Path, **environment: str) -> subprocess.Popen[bytes]:
    source = str(Path(oarlock_runtime.__file__).parents[1])
    command = [sys.executable, "-m", "oarlock_runtime.cli", "download", uri, "--cache-dir", str(cache)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source, **environment})


def test_sigterm_ends_a_download_as_a_containers_first_process(tmp_path: Path) -> None:
    with serve_files() as server:
        server.files["/m/model.gguf"] = bytes(1 << 20)
        server.faults = [("stall", 1000)]
        process = download(server.url + "/m/model.gguf", tmp_path)
        wait_until(lambda: any(path == "/m/model.gguf" for path, _ in server.log), 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_what_fetches_for_it_ends_with_it(tmp_path: Path) -> None:
    # A pip that never ends stands in for a slow one.
    package, told = tmp_path / "site" / "pip", tmp_path / "pid"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    source = str(Path(oarlock_runtime.__file__).parents[1])
    process = download("pypi://some-model", tmp_path, PYTHONPATH=f"{tmp_path / 'site'}:{source}")
    wait_until(lambda: told.exists() and told.read_text(), 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    wait_until(lambda: not Path(f"/proc/{told.read_text()}").exists())
