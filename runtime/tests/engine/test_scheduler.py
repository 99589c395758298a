"""The scheduler's decisions, step by step, on an executor without a model."""

from typing import Any

import numpy as np
import pytest
from support.toy_executor import ToyExecutor

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.plan import StepPlan
from oarlock_runtime.engine.request import Finish, QueueFull, Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.engine.scheduler import Scheduler
from oarlock_runtime.errors import RequestError, SettingError

VOCAB = 1000


class Steps:
    """A scheduler and its executor, one step at a time."""

    def __init__(self, **limits: Any) -> None:
        defaults = {"max_context": 1024, "max_sequences": 4, "max_batched_tokens": 128, "max_rows": 64, "blocks": 64}
        self.config = EngineConfig(vocab=VOCAB, **{**defaults, **limits})
        self.scheduler = Scheduler(self.config)
        self.executor = ToyExecutor(VOCAB, self.config.blocks)
        self.tokens: dict[int, list[int]] = {}
        self.now = 0.0

    def add(self, request_id: int, tokens: int, seed: int | None = None, max_tokens: int = 1000, **rest: Any) -> None:
        ids = np.random.default_rng(request_id if seed is None else seed).integers(0, VOCAB, tokens).astype(np.int32)
        self.scheduler.add(
            Request(request_id, ids, SamplingParams(max_tokens=max_tokens, temperature=0, **rest)), self.now
        )

    def step(self) -> StepPlan | None:
        """The plan, after its result was committed."""
        self.now += 1
        plan = self.scheduler.schedule(self.now)
        if plan is not None:
            self.executor.submit(plan)
            output = self.scheduler.commit(self.executor.collect())
            for request_id, token in zip(output.request_ids.tolist(), output.token_ids.tolist(), strict=True):
                self.tokens.setdefault(request_id, []).append(token)
        return plan


def lengths(plan: StepPlan | None) -> list[int]:
    """Tokens of each sequence in the step."""
    assert plan is not None
    return np.diff(plan.query_starts).tolist()


def test_prompts_come_in_chunks_beside_decoding() -> None:
    steps = Steps()
    steps.add(1, 10)
    assert lengths(steps.step()) == [10]
    steps.add(2, 300)
    assert [lengths(steps.step()) for _ in range(4)] == [[1, 127], [1, 127], [1, 46], [1, 1]]
    assert {request: len(tokens) for request, tokens in steps.tokens.items()} == {1: 5, 2: 2}


def test_nothing_to_do_is_no_step() -> None:
    steps = Steps()
    assert steps.step() is None and not steps.scheduler.has_work
    steps.add(1, 3, max_tokens=1)
    assert steps.scheduler.has_work
    assert lengths(steps.step()) == [3]
    assert steps.step() is None and not steps.scheduler.has_work


@pytest.mark.conformance(21)
def test_waiting_requests_are_admitted_in_order_as_seats_come_free() -> None:
    steps = Steps(max_sequences=2)
    for request_id in (1, 2, 3, 4):
        steps.add(request_id, 5, max_tokens=2 if request_id == 1 else 5)
    assert lengths(steps.step()) == [5, 5]
    assert lengths(steps.step()) == [1, 1]
    assert lengths(steps.step()) == [1, 5]
    assert list(steps.tokens) == [1, 2, 3]


def test_identical_prompts_of_one_step_share_their_blocks() -> None:
    steps = Steps(max_batched_tokens=256)
    for request_id in (1, 2, 3):
        steps.add(request_id, 200, seed=7)
    plan = steps.step()
    assert lengths(plan) == [200, 8, 8]
    assert plan is not None and (plan.block_tables[:, :3] == plan.block_tables[0, :3]).all()
    assert len(set(plan.block_tables[:, 3].tolist())) == 3
    assert steps.scheduler.counters.prefix_hits == 2 * 192


def test_a_prompt_waits_for_the_blocks_another_is_computing_and_lets_others_pass() -> None:
    steps = Steps(max_batched_tokens=150)
    steps.add(1, 300, seed=7)
    steps.add(2, 300, seed=7)
    steps.add(3, 10)
    assert lengths(steps.step()) == [150]
    assert lengths(steps.step()) == [150]
    assert lengths(steps.step()) == [1, 44, 10]
    assert steps.scheduler.counters.prefix_hits == 256


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    steps = Steps()
    steps.add(1, 128, seed=7, max_tokens=1)
    steps.step()
    steps.add(2, 128, seed=7, max_tokens=1)
    assert lengths(steps.step()) == [64]


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation() -> None:
    steps = Steps()
    steps.add(1, 60, max_tokens=70)
    while steps.scheduler.has_work:
        steps.step()
    prompt = np.random.default_rng(1).integers(0, VOCAB, 60).tolist()
    turn = np.array([*prompt, *steps.tokens[1], 5, 6], np.int32)
    steps.scheduler.add(Request(2, turn, SamplingParams()), 0)
    assert lengths(steps.step()) == [132 - 128]


def test_salted_prompts_share_nothing_with_others() -> None:
    steps = Steps(max_batched_tokens=512)
    prompt = np.arange(100, dtype=np.int32)
    for request_id, salt in enumerate(["", "tenant", "tenant"]):
        steps.scheduler.add(Request(request_id, prompt, SamplingParams(), salt), 0)
    assert lengths(steps.step()) == [100, 100, 36]


@pytest.mark.conformance(21)
def test_the_last_arrived_gives_way_and_comes_back_with_the_same_result() -> None:
    alone = Steps(blocks=8)
    alone.add(2, 60, max_tokens=300)
    while alone.scheduler.has_work:
        alone.step()
    steps = Steps(blocks=8, prefix_cache=False)
    steps.add(1, 60, max_tokens=400)
    steps.add(2, 60, max_tokens=300)
    while steps.scheduler.has_work:
        before = len(steps.tokens.get(1, []))
        steps.step()
        assert len(steps.tokens[1]) == before + 1 or before == 400, "the first that arrived never waits"
    assert steps.scheduler.counters.preemptions == 1
    assert steps.tokens[2] == alone.tokens[2] and len(steps.tokens[1]) == 400


def test_admission_leaves_room_for_those_that_run() -> None:
    steps = Steps(blocks=6)
    steps.add(1, 60, max_tokens=200)
    steps.add(2, 120, max_tokens=200)
    steps.step()
    assert list(steps.tokens) == [1], "3 blocks and room for 2 of each do not fit into 6"
    steps.scheduler.abort([1])
    steps.step()
    assert list(steps.tokens) == [1, 2]


def test_a_sequence_ends_where_the_pool_or_the_context_does() -> None:
    for limits, longest in (({"blocks": 2}, 128), ({"max_context": 100}, 100)):
        steps = Steps(**limits)
        steps.add(1, 30, max_tokens=1000)
        while steps.scheduler.has_work:
            steps.step()
        assert len(steps.tokens[1]) == longest - 30
        with pytest.raises(RequestError, match=f"at most {longest - 1} fit"):
            steps.add(2, longest)
        steps.add(3, longest - 1)


@pytest.mark.conformance(20)
def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    steps = Steps(max_sequences=2, max_waiting=3)
    for request_id in range(5):
        steps.add(request_id, 5, max_tokens=2)
    with pytest.raises(QueueFull) as full:
        steps.add(5, 5)
    assert (full.value.status, full.value.retry_after) == (429, 60), "nothing was ever admitted"
    for _ in range(3):
        steps.step()
    steps.add(5, 5)
    steps.add(6, 5)
    with pytest.raises(QueueFull) as full:
        steps.add(7, 5)
    assert full.value.retry_after == 2, "4 were admitted in the last 2 s, and 3 wait"
    steps.scheduler.abort([5])
    steps.add(7, 5)


def test_aborts_between_two_steps_reach_running_and_waiting_requests() -> None:
    steps = Steps(max_sequences=2)
    for request_id in (1, 2, 3):
        steps.add(request_id, 200)
    steps.step()
    assert steps.scheduler.abort([3, 1, 1, 99]) == [3, 1]
    assert lengths(steps.step()) == [128]
    assert steps.scheduler.abort([2]) == [2] and not steps.scheduler.has_work
    assert steps.scheduler.cache.pool.available == steps.config.blocks


def test_a_result_that_comes_after_an_abort_goes_to_nobody() -> None:
    steps = Steps(max_sequences=1)
    steps.add(1, 5)
    plan = steps.scheduler.schedule(0)
    assert plan is not None
    steps.executor.submit(plan)
    steps.scheduler.abort([1])
    steps.add(2, 5)
    assert not len(steps.scheduler.commit(steps.executor.collect()).request_ids)
    assert lengths(steps.step()) == [5]
    assert list(steps.tokens) == [2]


def test_a_row_without_a_distribution_ends_its_request_alone() -> None:
    steps = Steps()
    steps.executor.broken_token = 999
    steps.scheduler.add(Request(1, np.array([1, 2, 999], np.int32), SamplingParams()), 0)
    steps.scheduler.add(Request(2, np.array([1, 2, 998], np.int32), SamplingParams()), 0)
    plan = steps.scheduler.schedule(0)
    assert plan is not None
    steps.executor.submit(plan)
    output = steps.scheduler.commit(steps.executor.collect())
    assert output.finish.tolist() == [Finish.ERROR, Finish.RUNNING] and output.token_ids[0] == -1
    assert [failure.request_id for failure in output.failures] == [1]
    assert steps.scheduler.request_ids == [2]


def test_what_a_failed_request_has_cached_is_not_used_again() -> None:
    steps = Steps()
    steps.executor.broken_token = 999
    prompt = np.array([*range(64), 999], np.int32)
    steps.scheduler.add(Request(1, prompt, SamplingParams()), 0)
    steps.step()
    steps.scheduler.add(Request(2, prompt, SamplingParams()), 0)
    assert lengths(steps.step()) == [65]


def test_refusals_name_what_is_wrong() -> None:
    steps = Steps()
    for tokens, request_id, message in (
        ([], 1, "the prompt is empty"),
        ([5, VOCAB], 1, "token id 1000; ids are from 0 to 999"),
        ([-1], 1, "token id -1"),
        ([1], -1, "request_id is -1"),
    ):
        with pytest.raises(RequestError, match=message):
            steps.scheduler.add(Request(request_id, np.array(tokens, np.int32), SamplingParams()), 0)
    steps.add(1, 1)
    with pytest.raises(RequestError, match="request_id 1 is in use"):
        steps.add(1, 1)
    steps.step()
    with pytest.raises(RequestError, match="request_id 1 is in use"):
        steps.add(1, 1)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingError, match="max_batched_tokens is 3; it must be at least max_sequences, 4"):
        Steps(max_batched_tokens=3)
    with pytest.raises(SettingError, match="blocks is 0"):
        Steps(blocks=0)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_step_made_of_the_last_is_the_one_that_would_be_built(in_flight: int) -> None:
    made, built = (Steps(blocks=64) for _ in range(2))
    for steps in (made, built):
        for request_id, (tokens, rest) in enumerate(
            [(70, {}), (100, {"top_logprobs": 2}), (5, {"stop_token_ids": (7,)})]
        ):
            steps.add(request_id, tokens, max_tokens=90 + request_id, **rest)
    kinds = set()
    for turn in range(200):
        plans = []
        for steps in (made, built):
            if steps is built:
                steps.scheduler._last = None  # so that nothing can be made of it
            plans.append(steps.scheduler.schedule(turn))
        first, second = plans
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            kinds.add(made.scheduler._in_flight[-1].quiet > 0)
            for name in StepPlan.__slots__:
                one, other = getattr(first, name), getattr(second, name)
                assert (one is None) == (other is None), name
                assert name == "seed" or one is None or np.array_equal(one, other), name
        for steps, plan in zip((made, built), plans, strict=True):
            if plan is not None:
                steps.executor.submit(plan)
            if steps.scheduler.in_flight == in_flight or plan is None:
                if not steps.scheduler.in_flight:
                    break
                steps.scheduler.commit(steps.executor.collect())
        assert np.array_equal(made.scheduler.sequences.integers, built.scheduler.sequences.integers)
        assert made.scheduler.counters == built.scheduler.counters
    assert kinds == {True, False} and not made.scheduler.has_work
