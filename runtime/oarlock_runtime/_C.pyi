"""The compiled core (csrc/bindings).

ValueError: the caller's mistake; RuntimeError: the machine's refusal; ConnectionError: a rank that is lost or silent.
"""

from typing import Any, final

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS: int
MAX_TOP_LOGPROBS: int

@final
class Comm:
    """One rank's end of what the ranks of a split model say to each other. Not thread-safe, but for abort."""

    def __init__(self, rank: int, world: int, time_limit: float, library: str) -> None:
        """time_limit: seconds a call waits for a peer; library: UCX's libucp, or "" for the system's."""

    @property
    def address(self) -> bytes:
        """What the others need to reach this rank."""

    @property
    def seconds(self) -> float:
        """Time spent in collectives so far, waiting for peers included, but not for what rank 0 broadcasts."""

    def connect(self, addresses: list[bytes], names: list[str]) -> None:
        """Addresses of all ranks in order, and what errors call them; returns when all are connected."""

    def set_time_limit(self, seconds: float) -> None:
        """How long a call waits for a peer, from the next one on."""

    def all_reduce(self, values: npt.NDArray[np.float32]) -> None:
        """Sums over ranks in place."""

    def barrier(self) -> None: ...
    def abort(self, reason: str) -> None:
        """From any thread: ends what waits, and every later call, by ConnectionError."""

@final
class Executor:
    """One model on one device. Not thread-safe; every call that computes releases the GIL."""

    def __init__(self, config: dict[str, Any]) -> None: ...
    def load(self, name: str, pieces: list[tuple[str, npt.NDArray[Any]]], format: str) -> None:
        """Takes one weight: (source format, array) pieces stacked along output rows, held as ``format``."""

    def finish(self, blocks: int) -> None:
        """Checks that no weight is missing and allocates the workspace and a KV cache of ``blocks`` 64-token blocks."""

    def submit(self, plan: object) -> None:
        """Starts a step; ``plan`` is an engine StepPlan, whose arrays may be reused when this returns."""

    def collect(
        self,
    ) -> tuple[
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.int32],
    ]:
        """Token, logprob, top ids, top logprobs and status of each sampled row.

        The next submit or collect overwrites them.
        """

    def beat(self) -> None:
        """Rank 0 of a split model: returns when every other rank has answered."""

    def stop_followers(self) -> None:
        """Rank 0 of a split model: ends the other ranks' loops."""

    def follow(self) -> str:
        """Another rank: carries out rank 0's next order, which was "step", "beat" or "stop"."""

    @property
    def exchange_seconds(self) -> float:
        """Of this rank's steps on a GPU, those spent in exchanges with the other ranks; waits for the GPU."""

    @property
    def free_memory(self) -> int:
        """Bytes of device memory that the KV cache may take, before finish; 0 where it is the host's."""

    @property
    def stream(self) -> int:
        """The CUDA stream that steps run on, for tests and profilers; 0 on a CPU."""

    @property
    def weight_bytes(self) -> int: ...
    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that a decode step reads."""

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one KV block over all layers."""

    @property
    def blocks(self) -> int: ...

def devices() -> list[str]:
    """What a model can run on in this build: cpu, and cuda if it was built in."""

def cuda_device_count() -> int:
    """CUDA's devices that this process sees; 0 in a build without cuda, or without a driver."""

def isa() -> str:
    """The instruction set in use: avx2, avx512, avx512_vnni, avx512_bf16 or amx."""

def read_bandwidth(threads: int, seconds: float) -> float:
    """Measured bytes per second read from memory."""

def matrix_rate(kind: str, threads: int, seconds: float) -> float:
    """Measured operations per second of the best unit for kind bf16, int8 or f32, operands from L1."""
