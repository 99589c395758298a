"""Builds the compiled executor from a checkpoint and puts the engine's StepPlan and StepResult in front of it.

Runs in the engine process, and in any process that uses the engine directly (`oarlock bench --model`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime import _C
from oarlock_runtime.engine.memory import available_memory
from oarlock_runtime.engine.plan import BLOCK_TOKENS, StepPlan, StepResult
from oarlock_runtime.engine.ranks import Ranks, nccl_library
from oarlock_runtime.errors import SettingError
from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.loading import LoadProgress, Quantization, load_weights
from oarlock_runtime.models.sharding import can_be_even, shard_of, vocab_starts


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDefaults:
    """What is chosen for a device when nothing is said."""

    batched_tokens: int  # in a step: enough to keep its arithmetic busy
    kv_memory_share: float  # a GPU's memory is nobody else's
    overlap: bool  # it takes a step while another runs


DEVICES = {
    "cpu": DeviceDefaults(batched_tokens=512, kv_memory_share=0.5, overlap=False),
    "cuda": DeviceDefaults(batched_tokens=8192, kv_memory_share=0.9, overlap=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorOptions:
    """How a model is run; sizes of the workspace and of the KV pool. Zeros mean "choose"."""

    device: str = "cpu"
    dtype: str = "bf16"  # of activations and KV: bf16; f32 on a CPU, f16 on a GPU
    quantization: Quantization = "auto"
    threads: int = 0  # 0 = as many as this process may use
    max_sequences: int = 256
    max_context: int = 0  # 0 = the model's
    max_batched_tokens: int = 0  # 0 = the device's
    kv_blocks: int = 0  # 0 = from kv_memory
    kv_setting: str = ""  # what the user calls kv_blocks, when it comes of another setting
    kv_memory: int = 0  # bytes; 0 = kv_memory_share of the memory that is left beside the weights
    kv_memory_share: float = 0.0  # 0 = the device's
    batch_invariant: bool = False  # a GPU's tokens for a seed don't depend on what else is in the batch
    graphs: bool = True  # a GPU replays decode steps as graphs; the same results without
    overlap: bool = True  # a GPU takes a step while another runs
    step_limit: float = 120.0  # seconds; a step that takes longer has come to a GPU that hangs


class CoreExecutor:
    """The engine's Executor over `_C.Executor`, with the figures the engine and the start-up lines need."""

    def __init__(self, core: _C.Executor, max_context: int, max_rows: int, overlap: bool) -> None:
        self._core = core
        self._result: StepResult | None = None
        self._arrays: object = None  # those of _result, as the core gave them
        self.overlap = overlap  # for EngineConfig
        self.max_context = max_context
        self.max_rows = max_rows
        self.blocks = core.blocks
        self.weight_bytes = core.weight_bytes
        self.step_weight_bytes = core.step_weight_bytes
        self.bytes_per_block = core.bytes_per_block

    @property
    def stream(self) -> int:
        """The CUDA stream that steps run on, for tests and profilers; 0 on a CPU."""
        return self._core.stream

    def submit(self, plan: StepPlan) -> None:
        self._core.submit(plan)

    def collect(self) -> StepResult:
        arrays = self._core.collect()
        if self._result is None or arrays is not self._arrays:  # which they are while there are as many rows
            self._arrays, self._result = arrays, StepResult(*arrays)
        return self._result

    def beat(self) -> None:
        """Rank 0 of a split model: proves that every rank answers. ConnectionError when one does not in time."""
        self._core.beat()

    def stop_followers(self) -> None:
        """Rank 0 of a split model: ends the other ranks' loops."""
        self._core.stop_followers()

    @property
    def exchange_seconds(self) -> float:
        """Of this rank's steps on a GPU, those spent in exchanges with the others, waiting for them included."""
        return self._core.exchange_seconds

    def follow(self) -> str:
        """Another rank: carries out rank 0's next order: "step", "beat" or "stop"."""
        return self._core.follow()


def usable_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0))


def batched_tokens(device: str, wanted: int, max_sequences: int) -> int:
    """Tokens of a step: as wanted, else the device's; every running sequence can take one."""
    return max(wanted or DEVICES[device].batched_tokens, max_sequences)


def load_executor(
    checkpoint: Checkpoint,
    options: ExecutorOptions,
    progress: Callable[[LoadProgress], None] | None = None,
    ranks: Ranks | None = None,
) -> CoreExecutor:
    """Loads the weights, or the part of them that is this rank's, and sizes the KV pool.

    SettingError when the limits can't be met, ValueError from the core, ConnectionError when another rank is lost.
    """
    spec = checkpoint.spec
    shard, starts = None, []
    if ranks is not None:
        # As the files are cut, so that no rank reads another's.
        even = checkpoint.ranks == ranks.world and can_be_even(spec, ranks.world)
        shard = shard_of(spec, ranks.rank, ranks.world, even)
        starts = vocab_starts(spec, ranks.world, even)
    if options.max_context > spec.max_context:
        raise SettingError(
            f"max_context is {options.max_context}; {checkpoint.path} was trained for {spec.max_context} tokens"
        )
    max_context = options.max_context or spec.max_context
    blocks_per_sequence = -(-max_context // BLOCK_TOKENS)
    max_rows = batched_tokens(options.device, options.max_batched_tokens, options.max_sequences)
    core = _C.Executor(
        (shard.local_spec if shard is not None else spec).executor_config(max_context)
        | {
            "device": options.device,
            "dtype": options.dtype,
            "threads": options.threads or usable_threads(),
            "max_tokens": max_rows,
            "max_sequences": options.max_sequences,
            "max_rows": max_rows,
            "max_blocks_per_sequence": blocks_per_sequence,
            "batch_invariant": options.batch_invariant,
            "graphs": options.graphs,
            "device_index": ranks.local if ranks is not None else 0,
            "nccl_library": nccl_library() if ranks is not None else "",
            "step_limit": options.step_limit,
            "comm": ranks.comm if ranks is not None else None,
            "vocab_starts": starts,
        }
    )
    load_weights(checkpoint, core, options.quantization, options.dtype, progress, shard)
    free = available_memory() if options.device == "cpu" else core.free_memory
    blocks = _kv_blocks(options, free, core.bytes_per_block, blocks_per_sequence, checkpoint.path)
    core.finish(blocks if ranks is None else ranks.least(blocks))
    return CoreExecutor(core, max_context, max_rows, options.overlap and DEVICES[options.device].overlap)


def _kv_blocks(
    options: ExecutorOptions, available: int, bytes_per_block: int, blocks_per_sequence: int, path: Path
) -> int:
    """Blocks of the KV pool: as asked for, else what `available` bytes allow, never more than all sequences could fill.

    A pool that the machine can't hold is refused now: a CPU's pages are taken as they are used, so that the kernel
    would kill the engine in the middle of its work.
    """
    share = options.kv_memory_share or DEVICES[options.device].kv_memory_share
    memory = options.kv_memory or int(available * share)
    blocks = options.kv_blocks or min(memory // bytes_per_block, options.max_sequences * blocks_per_sequence)
    if blocks * bytes_per_block > available:
        name = options.kv_setting or ("kv_blocks" if options.kv_blocks else "kv_memory")
        raise SettingError(
            f"{name} asks for a KV cache of {blocks * bytes_per_block >> 20} MiB; {available >> 20} MiB are free"
        )
    if blocks < 1:
        raise SettingError(
            f"{memory >> 20} MiB are left for the KV cache of {path}; 64 tokens take {bytes_per_block >> 10} KiB"
        )
    return blocks
