"""The CUDA kernels compile, where their compiler is at hand: in CUDA_ROOT, this Python, or from `make cuda-build`."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 1200


def compiler() -> bool:
    packages = importlib.util.find_spec("nvidia")
    folders = [Path(place) / "cu13" for place in (packages.submodule_search_locations or [])] if packages else []
    folders += [Path(os.environ.get("CUDA_ROOT", "/nowhere")), ROOT / "build/cuda-toolkit/nvidia/cu13"]
    return any((folder / "bin/nvcc").exists() for folder in folders)


@pytest.mark.skipif(not compiler(), reason="no nvcc is at hand; `make cuda-build` fetches it")
def test_the_kernels_compile() -> None:
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, ROOT / "tools/gpu/compile.sh"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "compiled in" in done.stdout
