"""A model loaded into the bench's own process: what the in-process benches share."""

import argparse
from pathlib import Path

from oarlock_runtime.cli.terminal import progress
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.plan import BLOCK_TOKENS
from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.dummy import open_dummy
from oarlock_runtime.models.loading import LoadProgress, Quantization


def load(
    checkpoint: Checkpoint,
    flags: argparse.Namespace,
    quantization: Quantization,
    *,
    sequences: int,
    context: int,
    step_tokens: int,
) -> CoreExecutor:
    """The model with a KV pool for `sequences` of `context` tokens, and steps of up to `step_tokens` tokens."""
    options = options_of(checkpoint, flags, quantization, sequences=sequences, context=context, step_tokens=step_tokens)
    with progress(f"loading {Path(checkpoint.path).name}", in_bytes=True) as shown:

        def tell(state: LoadProgress) -> None:
            shown.update(state.done, state.total)

        return load_executor(checkpoint, options, tell)


def options_of(
    checkpoint: Checkpoint,
    flags: argparse.Namespace,
    quantization: Quantization,
    *,
    sequences: int,
    context: int,
    step_tokens: int,
) -> ExecutorOptions:
    """What `load` loads with."""
    return ExecutorOptions(
        device=flags.device,
        dtype=flags.dtype,
        quantization=quantization,
        threads=flags.threads,
        max_sequences=sequences,
        max_context=min(context, checkpoint.spec.max_context),
        max_batched_tokens=max(step_tokens, sequences),
        graphs=not flags.no_graphs,
        overlap=not flags.no_overlap,
        kv_blocks=sequences * -(-context // BLOCK_TOKENS),
    )


def checkpoint_of(uri: str, load_format: str = "auto", rank: int = 0, world: int = 1) -> Checkpoint:
    """Opens a model given as a path or URI, downloading it first if need be; dummy: as a config.json or a preset.

    Rank `rank` of `world` opens what it needs of it.
    """
    from oarlock_runtime.cli.download import local_path

    if load_format == "dummy":
        return open_dummy(uri)
    return open_checkpoint(local_path(uri), rank=rank, world=world)
