"""Which part of a model each rank holds when it is split: pure arithmetic over a ModelSpec.

A matrix that begins a block (q, k, v, gate, up) is split by output rows, the one that ends it (o, down) by columns,
the embedding and the head by tokens. Query heads stay with their KV head; a KV head is held by several ranks where
there are more ranks than KV heads. Parts are in whole units that kernels like and may be uneven; or they are even, as
in files that were cut for as many ranks. Used by the engine process of every rank.
"""

from dataclasses import dataclass, replace

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.spec import ModelSpec
from oarlock_runtime.models.tensors import Span

FFN_UNITS = 64, 32  # features: whole tiles of the kernels, or where they are too few at least groups of weights
VOCAB_UNIT = 64  # tokens


@dataclass(frozen=True)
class Shard:
    """One rank's part of a model: `heads`, `kv_heads`, `ffn` and `tokens` are spans of the whole model's."""

    rank: int
    world: int
    spec: ModelSpec
    heads: Span
    kv_heads: Span
    ffn: Span
    tokens: Span

    @property
    def local_spec(self) -> ModelSpec:
        """The spec that this rank's executor computes with. The vocabulary stays the model's."""
        return replace(self.spec, heads=len(self.heads), kv_heads=len(self.kv_heads), ffn=len(self.ffn))

    def rows(self, part: str) -> Span | None:
        """Output rows that this rank holds of a tensor ("q", "down", "embed" …), None for all."""
        dim = self.spec.head_dim
        return {
            "q": self.heads.times(dim),
            "q_bias": self.heads.times(dim),
            "k": self.kv_heads.times(dim),
            "k_bias": self.kv_heads.times(dim),
            "v": self.kv_heads.times(dim),
            "v_bias": self.kv_heads.times(dim),
            "gate": self.ffn,
            "up": self.ffn,
            "embed": self.tokens,
            "lm_head": self.tokens,
        }.get(part)

    def columns(self, part: str) -> Span | None:
        """Columns that this rank holds of a tensor, None for all."""
        return {"o": self.heads.times(self.spec.head_dim), "down": self.ffn}.get(part)


def shard_of(spec: ModelSpec, rank: int, world: int, even: bool = False) -> Shard:
    """Rank `rank`'s part of a model split over `world` ranks. CheckpointError when a rank would have no heads.

    even: features and tokens are shared out evenly, if they divide, whatever the units; only where parts can_be_even.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is outside 0 to {world - 1}")
    heads, kv_heads = _split_heads(spec, rank, world)
    tokens = _split(spec.vocab, _vocab_unit(spec, world, even), rank, world)
    if not len(tokens):
        raise CheckpointError(f"{spec.vocab} tokens can't be split over {world} ranks, in units of {VOCAB_UNIT}")
    return Shard(rank, world, spec, heads, kv_heads, _split_ffn(spec, rank, world, even), tokens)


def vocab_starts(spec: ModelSpec, world: int, even: bool = False) -> list[int]:
    """First token of every rank, and the vocabulary's size."""
    unit = _vocab_unit(spec, world, even)
    return [_split(spec.vocab, unit, rank, world).start for rank in range(world)] + [spec.vocab]


def can_be_even(spec: ModelSpec, world: int) -> bool:
    """Whether the kernels take `even` parts: as many KV heads for each rank, or ranks for each, and whole groups."""
    heads = spec.kv_heads % world == 0 or world % spec.kv_heads == 0
    return heads and spec.ffn % world == 0 and spec.ffn // world % FFN_UNITS[-1] == 0


def _split(count: int, unit: int, rank: int, world: int) -> Span:
    """Rank's part of `count` in whole units, as even as they allow; the last unit may be a short one."""
    units = -(-count // unit)
    return Span(min(units * rank // world * unit, count), min(units * (rank + 1) // world * unit, count))


def _vocab_unit(spec: ModelSpec, world: int, even: bool) -> int:
    return spec.vocab // world if even and spec.vocab % world == 0 else VOCAB_UNIT


def _split_ffn(spec: ModelSpec, rank: int, world: int, even: bool) -> Span:
    unit = next((unit for unit in FFN_UNITS if spec.ffn // unit >= world), FFN_UNITS[-1])
    span = _split(spec.ffn, spec.ffn // world if even else unit, rank, world)
    if not len(span):
        raise CheckpointError(
            f"{spec.ffn} features of the feed-forward layers can't be split over {world} ranks, in units of {unit}"
        )
    return span


def _split_heads(spec: ModelSpec, rank: int, world: int) -> tuple[Span, Span]:
    group = spec.heads // spec.kv_heads
    if spec.kv_heads >= world:
        kv_heads = _split(spec.kv_heads, 1, rank, world)
        return kv_heads.times(group), kv_heads
    own = rank * spec.kv_heads // world  # the KV head that this rank shares with others
    first, last = -(-own * world // spec.kv_heads), -(-(own + 1) * world // spec.kv_heads)
    part = _split(group, 1, rank - first, last - first)
    if not len(part):
        raise CheckpointError(
            f"{spec.heads} attention heads over {spec.kv_heads} KV heads can't be split over {world} ranks: "
            f"{last - first} ranks would share the {group} heads of a KV head"
        )
    return Span(own * group + part.start, own * group + part.stop), Span(own, own + 1)
