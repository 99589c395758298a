"""A model that was exported for several ranks: each reads its own directory alone, others re-cut what all have."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.forcing import predict
from support.paddle_files import paddle_directory
from support.paddle_split import split_directory
from support.ranks import OwnDirectory
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime.engine.executor import ExecutorOptions, load_executor
from oarlock_runtime.engine.local_ranks import split_model
from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.loading import load_plan
from oarlock_runtime.models.paddle.parts import Scheme
from oarlock_runtime.models.sharding import Shard, shard_of

# Shares that are no multiples of the units in which models are cut otherwise.
ODD: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 384}


def weights(checkpoint: Checkpoint, shard: Shard | None) -> dict[str, list[tuple[str, Any]]]:
    return {group.name: group.pieces() for group in load_plan(checkpoint, shard=shard)}


def same(one: dict[str, list[tuple[str, Any]]], other: dict[str, list[tuple[str, Any]]]) -> None:
    assert one.keys() == other.keys()
    for name, pieces in one.items():
        for (format, array), (expected_format, expected) in zip(other[name], pieces, strict=True):
            assert format == expected_format, name
            np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.conformance(31, 32)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_needs_its_own_directory_alone(tmp_path: Path, family: str, ranks: int) -> None:
    source = tiny_checkpoint(tmp_path, family, "bf16", **ODD)
    whole = split_directory(tmp_path / "all", source, ranks)
    for rank in range(ranks):
        shard = shard_of(source.spec, rank, ranks, even=True)
        alone = split_directory(tmp_path / f"host-{rank}", source, ranks, range(rank, rank + 1))
        read = open_checkpoint(alone, rank=rank, world=ranks)
        assert (read.spec, read.ranks) == (source.spec, ranks)
        same(weights(source, shard), weights(read, shard))
        # Where all are here it still opens no file of another rank.
        files = {ref.file.path.parent.name for ref in open_checkpoint(whole, rank=rank, world=ranks).refs.values()}
        assert files == {f"rank_{rank}"}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_numbers_of_ranks_cut_anew(tmp_path: Path, family: str) -> None:
    source = tiny_checkpoint(tmp_path, family, "f32", **ODD)
    whole = split_directory(tmp_path / "all", source, 4)
    same(weights(source, None), weights(open_checkpoint(whole), None))
    for world in (2, 3, 6):
        for rank in range(world):
            shard = shard_of(source.spec, rank, world)
            same(weights(source, shard), weights(open_checkpoint(whole, rank=rank, world=world), shard))


@pytest.mark.parametrize("quant_type", ["weight_only_int8", "weight_only_int4"])
@pytest.mark.parametrize("packing", ["sm75", "sm70"])
def test_quantized_shares_keep_their_codes(tmp_path: Path, quant_type: str, packing: str) -> None:
    source = tiny_checkpoint(tmp_path, "qwen2", "bf16", num_attention_heads=8, num_key_value_heads=4, head_dim=32)
    directory = paddle_directory(tmp_path / "all", source, Scheme("f16", quant_type, -1, packing), ranks=2)
    joined = open_checkpoint(directory)
    for rank in range(2):
        alone = tmp_path / f"host-{rank}"
        shutil.copytree(directory, alone, ignore=shutil.ignore_patterns(f"rank_{1 - rank}"))
        shard = shard_of(source.spec, rank, 2, even=True)
        read = open_checkpoint(alone, rank=rank, world=2)
        same(weights(joined, shard), weights(read, shard))
        assert read["layers.0.o"].format == ("q8_0" if quant_type.endswith("8") else "q4_0")
    for rank in range(3):  # rows that begin anywhere within a rank's
        shard = shard_of(source.spec, rank, 3)
        whole = {name: [array for _, array in pieces] for name, pieces in weights(joined, None).items()}
        rows = shard.rows("gate")
        assert rows is not None
        for index, (_, array) in enumerate(weights(joined, shard)["layers.1.gate_up"]):
            np.testing.assert_array_equal(array, whole["layers.1.gate_up"][index][rows.start : rows.stop])


def test_heads_that_do_not_divide_need_all_ranks(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16", num_attention_heads=12, num_key_value_heads=3, head_dim=32)
    directory = paddle_directory(
        tmp_path / "all", source, ranks=2
    )  # each has all keys, and six queries of three KV heads
    for rank in range(2):
        shard = shard_of(source.spec, rank, 2, even=True)
        same(weights(source, shard), weights(open_checkpoint(directory, rank=rank, world=2), shard))
    shutil.rmtree(directory / "rank_1")
    with pytest.raises(CheckpointError, match=r"has rank_0; expected are rank_0 to rank_1$"):
        open_checkpoint(directory, rank=0, world=2)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16", **ODD)
    second = split_directory(tmp_path / "second", source, 4, range(2, 4))
    assert open_checkpoint(second, rank=3, world=4).ranks == 4
    for rank, world, problem in [
        (0, 4, "has rank_2, rank_3; rank 0 of 4 needs rank_0"),
        (0, 1, r"has rank_2, rank_3; expected are rank_0 to rank_3; each of 4 ranks \(MP_NUM=4\) can do with its own"),
        (1, 2, r"has rank_2, rank_3; expected are rank_0 to rank_3"),
    ]:
        with pytest.raises(CheckpointError, match=problem):
            open_checkpoint(second, rank=rank, world=world)
    other = split_directory(tmp_path / "other", source, 2)
    (second / "rank_3" / "model.pdiparams").write_bytes((other / "rank_1" / "model.pdiparams").read_bytes())
    (second / "rank_3" / "model.json").write_text((other / "rank_1" / "model.json").read_text())
    with pytest.raises(CheckpointError, match=r"rank_3/model\.pdiparams: 0 .* \[512, 128\] or \[128, 128\]"):
        open_checkpoint(second, rank=3, world=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_hosts_with_their_own_directories_answer_as_one(tmp_path: Path, family: str) -> None:
    source = tiny_checkpoint(tmp_path, family, "f32", **ODD)
    options = ExecutorOptions(
        dtype="f32", max_sequences=4, max_context=512, max_batched_tokens=512, kv_blocks=16, threads=1
    )
    ids = np.random.default_rng(3).integers(0, 256, 100).tolist()
    expected = predict(load_executor(source, options), ids)
    for rank in range(2):
        split_directory(tmp_path / f"host-{rank}", source, 2, range(rank, rank + 1))
    with split_model(OwnDirectory(tmp_path), options, 2) as model:
        got = predict(model.executor, ids)
    assert np.abs(got.logprob[:-1] - expected.logprob[:-1]).max() < 1e-3
    assert (got.best == expected.best).all()
