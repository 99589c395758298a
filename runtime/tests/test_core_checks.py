"""Runs the kernels' own checks, the programs that CMake builds beside the extension module (option OARLOCK_CHECKS)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from oarlock_runtime.engine.ranks import ucx_library

ROOT = Path(__file__).parents[2]
CHECK = re.compile(r"add_executable\(\s*(\w+_check)\b")
# The build's folder is named by the wheel's tag; see build-dir in pyproject.toml.
BUILD = f"build/cp{sys.version_info.major}{sys.version_info.minor}-*"
SECONDS = 600


def declared_checks() -> list[str]:
    """The checks of the CPU's part, as the build files name them: one that isn't built must not pass unseen."""
    files = [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/CMakeLists.txt"), *ROOT.glob("csrc/**/*.cmake")]
    here = [file for file in files if "cuda" not in file.relative_to(ROOT).parts]
    return sorted({name for file in here for name in CHECK.findall(file.read_text())})


def test_there_are_checks() -> None:
    assert "gemm_check" in declared_checks()


@pytest.mark.parametrize("name", declared_checks())
def test_core_check(name: str) -> None:
    found = [path for path in ROOT.glob(f"{BUILD}/**/{name}") if path.is_file()]
    assert found, f"{name} is not built; run `make setup`"
    program = max(found, key=lambda path: path.stat().st_mtime)
    done = subprocess.run(
        [program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"OARLOCK_UCX_LIBRARY": ucx_library()},
    )
    assert done.returncode == 0, done.stdout[-4000:]
