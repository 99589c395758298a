"""What a GPU can't do, and what happens when it fails or hangs: a message each time, and an end.

`make gpu-test` runs these on a machine with a GPU; elsewhere they are skipped.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.cuda import CUDA, needs_cuda, run, same, tiny

from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine.executor import load_executor

pytestmark = needs_cuda


def test_what_the_device_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path)
    with pytest.raises(ValueError, match=r"f32.*bf16, f16, which device cuda has"):
        load_executor(checkpoint, replace(CUDA, dtype="f32"))
    with pytest.raises(ValueError, match="compute dtype"):
        load_executor(checkpoint, replace(CUDA, quantization="int8"))
    with pytest.raises(Exception, match="asks for a KV cache"):
        load_executor(checkpoint, replace(CUDA, kv_blocks=1 << 28))


def test_memory_that_is_taken_is_refused(tmp_path: Path) -> None:
    """By whatever holds it: the weights and the workspace of a second model find no room, and the first one runs on."""
    checkpoint = tiny(tmp_path)
    plan = step_plan(checkpoint.spec.vocab, 4, 1, 70)
    executor = load_executor(checkpoint, CUDA)
    expected = run(executor, plan)
    with pytest.raises(RuntimeError, match=r"the device has no room for \d+ bytes"):
        load_executor(checkpoint, replace(CUDA, max_sequences=1 << 23, kv_blocks=8))
    same(run(executor, plan), expected)


# Runs steps on a device that something happens to between the first and the others, in a process of its own.
LOST = r"""
import sys, time
from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine.executor import ExecutorOptions, load_executor
from oarlock_runtime.models.checkpoint import open_checkpoint
from support.gpu_kernels import StreamKernels

options = ExecutorOptions(device="cuda", max_sequences=8, max_context=128, kv_blocks=16, step_limit=2)
executor = load_executor(open_checkpoint(sys.argv[1]), options)
plan = step_plan(256, 4, 1, 70)
executor.submit(plan)
executor.collect()
kernels = StreamKernels(executor.stream)
kernels.fault() if sys.argv[2] == "fault" else kernels.delay(1e9)
begin = time.monotonic()
for _ in range(2):
    try:
        executor.submit(plan)
        executor.collect()
    except RuntimeError as error:
        print(f"refused after {time.monotonic() - begin:.1f} s: {error}", flush=True)
assert time.monotonic() - begin < 20
"""


@pytest.mark.parametrize(
    ("what", "messages"),
    [("fault", ["", ""]), ("hang", ["has not come to its end within 2 s", "the device has failed"])],
)
def test_a_device_that_is_lost_ends_with_a_message(tmp_path: Path, what: str, messages: list[str]) -> None:
    """A step that finds it so says it, those after it are refused, and the process can end."""
    checkpoint = tiny(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOST, checkpoint.path, what], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all(line.startswith("refused") and message in line for line, message in zip(said, messages, strict=True))
