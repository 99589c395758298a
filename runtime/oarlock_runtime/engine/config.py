"""What the engine must know of the model, the executor and the limits set by the user."""

from dataclasses import dataclass

from oarlock_runtime.engine.plan import BLOCK_TOKENS
from oarlock_runtime.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Raises SettingError when the limits contradict each other."""

    vocab: int
    max_context: int  # tokens of prompt and output together
    max_sequences: int  # admitted at once
    max_batched_tokens: int  # in a step; as the executor's max_tokens
    max_rows: int  # of logits in a step; as the executor's
    blocks: int  # KV pool, in blocks of 64 tokens
    max_waiting: int = 128  # requests in the queue beyond the seats that are free
    max_admissions: int = 4096  # requests taken from the queue in one step
    eos_ids: tuple[int, ...] = ()
    prefix_cache: bool = True
    overlap: bool = False  # plan a step while the one before it runs; the executor must take two
    step_weight_bytes: int = 0  # read by a step; these two are for the estimate of bytes read
    bytes_per_block: int = 0

    def __post_init__(self) -> None:
        for name in (
            "vocab",
            "max_context",
            "max_sequences",
            "max_batched_tokens",
            "max_rows",
            "blocks",
            "max_waiting",
            "max_admissions",
        ):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_batched_tokens", "max_rows"):
            if getattr(self, name) < self.max_sequences:
                raise SettingError(
                    f"{name} is {getattr(self, name)}; it must be at least max_sequences, {self.max_sequences}, "
                    "so that every running sequence can take a token each step"
                )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that can be served: bounded by the context and by the KV pool."""
        return min(self.max_context, self.blocks * BLOCK_TOKENS)
