"""PaddleNLP's arithmetic of KV blocks, to the block: how many there are, and how many a request needs. Pure.

PaddleNLP splits its pool in two: prompts and their first answer tokens take blocks from the host's share, and the
device hands out the rest as answers grow. Oarlock has one pool, but counts as PaddleNLP does where BLOCK_BS is set:
for the size of the pool, for what is admitted, and for what /metrics tells.
"""

import math
from dataclasses import dataclass
from typing import Self

from oarlock_runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Counts of blocks of `block` tokens."""

    block: int
    max_query: int  # of the longest sequence
    total: int  # in the pool
    host: int  # of them, for prompts
    reserved_tokens: int  # that a request is given for its answer when it is admitted

    @classmethod
    def make(
        cls,
        *,
        block_bs: float,
        block_ratio: float,
        max_seq_len: int,
        max_dec_len: int,
        enc_dec_block_num: int,
        block: int = 64,
    ) -> Self:
        """`block_bs` sequences of `max_seq_len` tokens, of which the host has the share `block_ratio`."""
        reserved = _ceil(max_dec_len, block) if block_ratio >= 1 else enc_dec_block_num
        max_query = _ceil(max(max_dec_len, max_seq_len), block)
        total = int(block_bs * max_query)
        return cls(block, max_query, total, int(total * block_ratio), reserved * block)

    @classmethod
    def of(cls, settings: Settings, context: int) -> Self | None:
        """The plan of a server whose sequences may have `context` tokens; None where BLOCK_BS is not set."""
        if not settings.block_bs:
            return None
        return cls.make(
            block_bs=settings.block_bs,
            block_ratio=settings.block_ratio,
            max_seq_len=context,
            max_dec_len=min(settings.max_output_tokens or context, context),
            enc_dec_block_num=settings.enc_dec_block_num,
            block=settings.block_size,
        )

    def pool(self, block: int) -> int:
        """The whole pool in blocks of `block` tokens."""
        return self.total * self.block // block

    @property
    def device(self) -> int:
        """Blocks that growing answers take."""
        return self.total - self.host

    def blocks_of(self, prompt: int) -> int:
        """Blocks that a request with `prompt` tokens is given when it is admitted."""
        return min((prompt + self.block - 1 + self.reserved_tokens) // self.block, self.max_query)

    def admits(self, prompt: int) -> bool:
        """Whether a request with `prompt` tokens could ever be admitted."""
        return self.blocks_of(prompt) <= self.host


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings for given average lengths."""

    block_bs: float
    block_ratio: float
    batch_size: int


def advise(pool_tokens: int, max_seq_len: int, average_in: int, average_out: int) -> Advice:
    """What PaddleNLP's guide recommends for a pool of `pool_tokens` and requests of these average lengths.

    The ratio is never above 1 (the guide adds up to 30 % where lengths vary much), and the batch stays below what the
    pool holds of such requests.
    """
    share = (average_in + 128) / (average_in + average_out)
    below = math.ceil(pool_tokens / (average_in + average_out)) - 1
    return Advice(round(pool_tokens / max_seq_len, 2), round(min(share, 1.0), 2), max(1, min(below, 256)))


def _ceil(tokens: int, block: int) -> int:
    return -(-tokens // block)
