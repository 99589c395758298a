"""What compute-sanitizer finds while an executor runs: threads of a block that race for its shared memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.cuda import needs_cuda

SANITIZER = shutil.which("compute-sanitizer")

pytestmark = [needs_cuda, pytest.mark.skipif(SANITIZER is None, reason="there is no compute-sanitizer")]


def test_no_threads_of_a_step_race(tmp_path: Path) -> None:
    assert SANITIZER is not None
    command = [SANITIZER, "--tool", "racecheck", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "support.cuda_steps", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RACECHECK SUMMARY: 0 hazards" in done.stdout
