"""A few steps of a tiny model on the GPU, for a tool that makes every one of them slow to watch.

A prompt, steps that are captured and replayed, and one that goes on with the tokens of the one before.
Usage: python -m support.cuda_steps FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from support.cuda import CUDA, run, tiny

from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine.executor import load_executor


def main(folder: Path) -> None:
    checkpoint = tiny(folder)
    vocab = checkpoint.spec.vocab
    executor = load_executor(checkpoint, replace(CUDA, max_sequences=8, max_batched_tokens=128, kv_blocks=32))
    for sequences, new_tokens, context in ((1, 70, 70), (3, 1, 70), (3, 1, 71), (3, 1, 70), (8, 1, 90)):
        run(executor, step_plan(vocab, sequences, new_tokens, context))
    after = step_plan(vocab, 4, 1, 71)
    after.token_sources = np.arange(4, dtype=np.int32)
    executor.submit(step_plan(vocab, 4, 1, 70))
    executor.submit(after)
    executor.collect()
    executor.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
