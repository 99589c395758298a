"""PaddleNLP's arithmetic of blocks, by its own examples and by its formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oarlock_runtime.server.paddle.block_plan import BlockPlan, advise
from oarlock_runtime.server.paddle.environment import with_defaults
from oarlock_runtime.settings import Settings


def script(**environ: str) -> Settings:
    return Settings.load([], with_defaults(environ))


@pytest.mark.conformance(7)
def test_the_defaults_of_start_server() -> None:
    plan = BlockPlan.of(script(), 8192)
    assert plan is not None
    assert (plan.max_query, plan.total, plan.host, plan.device, plan.reserved_tokens) == (128, 512, 384, 128, 256)
    assert plan.blocks_of(1000) == 20
    assert plan.blocks_of(8000) == 128  # never more than the longest sequence has
    assert plan.pool(64) == 512


@pytest.mark.conformance(7)
def test_a_ratio_of_one_reserves_the_whole_answer() -> None:
    plan = BlockPlan.of(script(BLOCK_RATIO="1", MAX_DEC_LEN="1000"), 8192)
    assert plan is not None and (plan.reserved_tokens, plan.host, plan.device) == (1024, 512, 0)


@pytest.mark.conformance(7)
@given(
    block_bs=st.floats(0.1, 300),
    ratio=st.floats(0.01, 1),
    length=st.integers(1, 40_000),
    output=st.integers(1, 40_000),
    reserve=st.integers(0, 64),
    block=st.sampled_from([16, 64, 128]),
    prompt=st.integers(1, 50_000),
)
def test_every_case_follows_the_formulas(
    block_bs: float, ratio: float, length: int, output: int, reserve: int, block: int, prompt: int
) -> None:
    plan = BlockPlan.make(
        block_bs=block_bs,
        block_ratio=ratio,
        max_seq_len=length,
        max_dec_len=output,
        enc_dec_block_num=reserve,
        block=block,
    )
    reserved = math.ceil(output / block) if ratio >= 1 else reserve
    widest = math.ceil(max(output, length) / block)
    assert plan.max_query == widest and plan.total == int(block_bs * widest)
    assert plan.host == int(plan.total * ratio) and plan.host + plan.device == plan.total
    assert plan.blocks_of(prompt) == min((prompt + block - 1 + reserved * block) // block, widest)
    assert plan.admits(prompt) == (plan.blocks_of(prompt) <= plan.host)


def test_without_block_bs_there_is_no_plan() -> None:
    assert BlockPlan.of(Settings(), 8192) is None


def test_blocks_of_another_size_hold_as_many_tokens() -> None:
    plan = BlockPlan.of(script(BLOCK_SIZE="128"), 8192)
    assert plan is not None and plan.total == 256 and plan.pool(64) == 512


def test_advice_for_average_lengths() -> None:
    advice = advise(4 * 8192, 8192, 1000, 200)
    assert (advice.block_bs, advice.block_ratio, advice.batch_size) == (4, 0.94, 27)
    assert advise(4 * 8192, 8192, 300, 1500).block_ratio == 0.24
    assert advise(4 * 8192, 8192, 1000, 10).block_ratio == 1
    assert advise(1 << 30, 8192, 10, 10).batch_size == 256
    assert advise(100, 8192, 1000, 1000).batch_size == 1
