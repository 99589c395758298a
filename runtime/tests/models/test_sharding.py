"""The parts of a split model: they cover it, no row twice but shared KV heads, and every rank has work."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.loading import load_plan
from oarlock_runtime.models.sharding import Shard, shard_of, vocab_starts
from oarlock_runtime.models.spec import ModelSpec

SPEC = ModelSpec(
    family="llama",
    layers=1,
    hidden=64,
    heads=9,
    kv_heads=3,
    head_dim=16,
    ffn=160,
    vocab=1000,
    max_context=64,
    norm_epsilon=1e-5,
)


def shards(spec: ModelSpec, world: int) -> list[Shard]:
    return [shard_of(spec, rank, world) for rank in range(world)]


@given(
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 12),
    ffn=st.integers(1, 4000),
    vocab=st.integers(1, 200_000),
    world=st.integers(1, 16),
)
def test_parts_cover_the_model_once(kv_heads: int, group: int, ffn: int, vocab: int, world: int) -> None:
    assume(-(-ffn // 32) >= world and -(-vocab // 64) >= world)
    spec = replace(SPEC, heads=kv_heads * group, kv_heads=kv_heads, ffn=ffn, vocab=vocab)
    # A KV head's query heads are shared out among as many ranks as it has at most.
    assume(world <= kv_heads or -(-world // kv_heads) <= group)
    parts = shards(spec, world)
    for spans, whole in (
        ([part.heads for part in parts], spec.heads),
        ([part.ffn for part in parts], ffn),
        ([part.tokens for part in parts], vocab),
    ):
        assert spans[0].start == 0 and spans[-1].stop == whole
        assert all(before.stop == after.start for before, after in pairwise(spans))
    for part in parts:
        assert len(part.heads) % len(part.kv_heads) == 0
        own = len(part.heads) // len(part.kv_heads)
        # Local head h reads local KV head h // own, which must be the whole model's KV head of that query head.
        for local in range(len(part.heads)):
            assert (part.heads.start + local) // group == part.kv_heads.start + local // own
        assert len(part.ffn) > 0
        assert part.local_spec.scale == spec.scale
    assert vocab_starts(spec, world) == [part.tokens.start for part in parts] + [vocab]


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(CheckpointError, match="9 attention heads over 3 KV heads can't be split over 10 ranks"):
        shards(SPEC, 10)
    with pytest.raises(CheckpointError, match="64 tokens can't be split over 2 ranks, in units of 64"):
        shards(replace(SPEC, vocab=64), 2)
    with pytest.raises(CheckpointError, match=r"100 features .* over 5 ranks, in units of 32"):
        shards(replace(SPEC, heads=64, kv_heads=64, ffn=100), 5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["f32", "q8_0", "q4_1"])
def test_the_ranks_weights_are_the_models(tmp_path_factory: pytest.TempPathFactory, family: str, dtype: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("models"), family, dtype)
    whole = {group.name: group.pieces() for group in load_plan(checkpoint)}
    parts = [
        {group.name: group.pieces() for group in load_plan(checkpoint, shard=shard)}
        for shard in shards(checkpoint.spec, 2)
    ]
    names = {name.rpartition(".")[2] for name in whole}
    assert {"qkv", "o", "gate_up", "down", "embed"} <= names
    for name, pieces in whole.items():
        part = name.rpartition(".")[2]
        if part in ("attn_norm", "ffn_norm", "final_norm", "q_norm", "k_norm"):
            assert all(np.array_equal(rank[name][0][1], pieces[0][1]) for rank in parts)
        elif part == "qkv_bias":
            assert sum(rank[name][0][1].size for rank in parts) == pieces[0][1].size
        else:
            axis = 1 if part in ("o", "down") else 0
            for index, (format, array) in enumerate(pieces):
                assert all(rank[name][index][0] == format for rank in parts)
                joined = np.concatenate([rank[name][index][1] for rank in parts], axis=axis)
                assert np.array_equal(joined, array), name


@pytest.mark.parametrize("dtype", ["bf16", "q8_0", "q4_1"])
def test_ranks_read_their_own_rows_alone(tmp_path: Path, dtype: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "llama", dtype)
    read = [
        {group.name: group.file_bytes for group in load_plan(checkpoint, shard=shard)}
        for shard in [None, *shards(checkpoint.spec, 2)]
    ]
    whole, *parts = read
    for name in ("embed", "layers.0.qkv", "layers.2.gate_up"):
        assert sum(part[name] for part in parts) == whole[name]
