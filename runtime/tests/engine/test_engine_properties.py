"""Random arrivals, aborts, tiny pools and forced preemptions: every request gets what it would get alone."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.toy_executor import ToyExecutor, expected_tokens, toy_alternative, toy_logprob

from oarlock_runtime.engine import kv_cache
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.plan import BLOCK_TOKENS
from oarlock_runtime.engine.request import Finish, QueueFull, Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError

VOCAB, EOS, BROKEN = 509, (3, 4), 508
TEXT = np.random.default_rng(1).integers(5, BROKEN, 400).astype(np.int32)


@st.composite
def configs(draw: st.DrawFn, crowded: bool) -> EngineConfig:
    """crowded: more sequences than the pool holds to their end."""
    max_sequences = draw(st.sampled_from([4, 6] if crowded else [1, 2, 3]))
    return EngineConfig(
        vocab=VOCAB,
        max_context=500 if crowded else draw(st.sampled_from([500, 257, 130])),
        max_sequences=max_sequences,
        max_batched_tokens=max_sequences + draw(st.sampled_from([0, 10, 64, 100, 160])),
        max_rows=max_sequences + draw(st.sampled_from([0, 1, 20])),
        blocks=draw(st.sampled_from([7, 8, 9, 10] if crowded else [1, 5, 14, 30])),
        max_waiting=draw(st.sampled_from([8, 1])),
        eos_ids=EOS,
        prefix_cache=draw(st.sampled_from([True, True, False])),
        overlap=draw(st.booleans()),
    )


@st.composite
def prompts(draw: st.DrawFn) -> np.ndarray:
    """Beginnings of one text, some behind 64 other tokens, many of whole blocks, some with tokens of their own."""
    length = draw(st.sampled_from([128, 150, 192, 200, 256, 65, 64, 63, 1, 0]))
    before = TEXT[64:128] if draw(st.integers(0, 3)) == 0 else TEXT[:0]
    own = draw(st.lists(st.integers(0, VOCAB - 1), min_size=0 if length else 1, max_size=3))
    return np.concatenate((before, TEXT[:length], np.array(own, np.int32))).astype(np.int32)


@st.composite
def samplings(draw: st.DrawFn, crowded: bool) -> SamplingParams:
    max_tokens = draw(st.sampled_from([300, 200, 130] if crowded else [64, 2, 1, 0]))
    penalties = draw(st.sampled_from([(1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.5, 0.25, -0.5), (1.0, 0.5, 0.0)]))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(max_tokens, draw(st.sampled_from([0, 0, 3, 70]))),
        temperature=draw(st.sampled_from([0.0, 0.75])),
        top_p=draw(st.sampled_from([1.0, 0.5])),
        top_k=draw(st.sampled_from([-1, 0, 7])),
        repetition_penalty=penalties[0],
        presence_penalty=penalties[1],
        frequency_penalty=penalties[2],
        seed=draw(st.integers(-(1 << 63), (1 << 64) - 1)),
        logit_bias=draw(st.sampled_from([{}, {}, {7: 2.5, 3: -1.0}])),
        stop_token_ids=draw(st.sampled_from([(), (), (9,), (9, 10, 11, 12, 13)])),
        ignore_eos=crowded or draw(st.booleans()),
        top_logprobs=draw(st.sampled_from([-1, -1, 0, 2])),
        prompt_logprobs=draw(st.sampled_from([-1, -1, -1, 0, 3])),
    )


@dataclass
class Seen:
    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    finish: Finish = Finish.RUNNING
    started: int = 0


class World:
    """An engine on a toy executor, and what its clients have seen."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        executor = ToyExecutor(
            VOCAB,
            config.blocks,
            broken_token=BROKEN,
            max_tokens=config.max_batched_tokens,
            max_rows=config.max_rows,
        )
        self.engine = Engine(executor, config)
        self.seen: dict[int, Seen] = {}
        self.aborted: set[int] = set()

    def add(self, prompt: np.ndarray, sampling: SamplingParams, salt: str) -> None:
        request = Request(len(self.seen), prompt, sampling, salt)
        try:
            self.engine.add(request)
        except QueueFull as error:
            assert 1 <= error.retry_after <= 60
        except RequestError as error:
            assert error.field == "prompt" and len(prompt) + 1 > self.config.longest
        else:
            self.seen[request.request_id] = Seen(request)

    def abort(self, request_id: int) -> None:
        alive = request_id in self.seen and self.seen[request_id].finish == Finish.RUNNING
        output = self.engine.abort([request_id, request_id, 12345])
        assert output.request_ids.tolist() == [request_id] * alive
        if alive:
            self.seen[request_id].finish = Finish.ABORT

    def step(self) -> None:
        output = self.engine.step()
        if output is None:
            assert not self.engine.has_work
            return
        for part in output.prompt_logprobs:
            seen = self.seen[part.request_id]
            assert part.top_ids.shape == (len(part.logprobs), seen.request.sampling.prompt_logprobs)
            for place, logprob in enumerate(part.logprobs.tolist(), part.start):
                assert place not in seen.scores
                seen.scores[place] = logprob
        logprobs = {}
        if output.logprobs:
            for at, entry in enumerate(output.logprobs.entries.tolist()):
                logprobs[entry] = (output.logprobs.logprobs[at], output.logprobs.top_ids[at].tolist())
        if output.started:
            for entry in output.started.entries.tolist():
                self.seen[int(output.request_ids[entry])].started += 1
        errors = {failure.request_id for failure in output.failures}
        for entry, (request_id, token, finish) in enumerate(
            zip(output.request_ids.tolist(), output.token_ids.tolist(), output.finish.tolist(), strict=True)
        ):
            seen = self.seen[request_id]
            assert seen.finish == Finish.RUNNING
            seen.finish = Finish(finish)
            assert (request_id in errors) == (finish == Finish.ERROR)
            assert finish or token >= 0
            if token >= 0:
                self._check_logprobs(seen, token, logprobs.get(entry))
                seen.tokens.append(token)
        self.check_blocks()

    def _check_logprobs(self, seen: Seen, token: int, logprob: tuple[float, list[int]] | None) -> None:
        wanted = seen.request.sampling.top_logprobs
        assert (logprob is not None) == (wanted >= 0)
        if logprob is not None:
            context = np.array([*seen.request.prompt.tolist(), *seen.tokens])
            assert logprob[0] == np.float32(toy_logprob(context, token))
            assert logprob[1][:wanted] == [toy_alternative(context, place, VOCAB)[0] for place in range(wanted)]

    def check_blocks(self) -> None:
        """Each block's references are those of the sequences that hold it; blank and idle ones are the rest."""
        scheduler = self.engine._scheduler
        pool, sequences = scheduler.cache.pool, scheduler.sequences
        seats = [*scheduler.decoding.tolist(), *scheduler.prefilling, *scheduler.preempted]
        assert len(seats) == len(set(seats)) == self.config.max_sequences - sequences.vacant
        held = np.zeros(self.config.blocks, np.int32)
        for seat in seats:
            held[sequences.blocks_of(seat)] += 1
        assert (held == pool._references).all()
        loose = sorted([*pool._blank[: pool._blank_count].tolist(), *pool._idle])
        assert loose == np.flatnonzero(held == 0).tolist()
        assert {block: digest for digest, block in pool._block_of.items()} == {
            block: digest for block, digest in enumerate(pool._digests) if digest is not None
        }

    def finish(self) -> None:
        work = sum(2 + len(seen.request.prompt) + seen.request.sampling.max_tokens for seen in self.seen.values())
        for _ in range(20 * work + 20):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "no progress"
        scheduler = self.engine._scheduler
        assert scheduler.cache.pool.available == self.config.blocks
        assert not scheduler.cache._computing and not scheduler._in_flight
        for seen in self.seen.values():
            self._check_result(seen)

    def _check_result(self, seen: Seen) -> None:
        tokens, finish = expected_tokens(seen.request, VOCAB, EOS, self.config.longest, BROKEN)
        prompt, wants = seen.request.prompt, seen.request.sampling.prompt_logprobs
        broken_prompt = wants >= 0 and BROKEN in prompt.tolist()
        if seen.finish == Finish.ABORT:
            assert seen.tokens == tokens[: len(seen.tokens)]
            return
        if broken_prompt:
            assert seen.finish == Finish.ERROR and not seen.tokens
            return
        assert (seen.tokens, seen.finish) == (tokens, finish)
        assert seen.started == 1
        if wants >= 0:
            assert seen.scores == {
                at: np.float32(toy_logprob(prompt[:at], int(prompt[at]))) for at in range(1, len(prompt))
            }


@pytest.mark.conformance(21)
@pytest.mark.parametrize("crowded", [False, True])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_each_request_gets_what_it_would_get_alone(crowded: bool, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if crowded:
            patch.setattr(kv_cache, "ROOM_BLOCKS", 0)  # as many preemptions as can be
        live(World(data.draw(configs(crowded))), crowded, data)


def live(world: World, crowded: bool, data: st.DataObject) -> None:
    """Random events, then the end of all requests."""
    texts = data.draw(st.lists(prompts(), min_size=1, max_size=2))
    for event_name in ["add", *data.draw(st.lists(st.sampled_from(["steps", "add", "step", "abort"]), max_size=9))]:
        match event_name:
            case "add":
                for _ in range(4 if crowded else data.draw(st.sampled_from([1, 2, 4]))):
                    sampling = data.draw(samplings(crowded))
                    salt = data.draw(st.sampled_from(["", "", "salt"]))
                    world.add(data.draw(st.sampled_from(texts)), sampling, salt)
            case "step":
                world.step()
            case "steps":
                for _ in range(data.draw(st.integers(2, 80))):
                    world.step()
            case "abort":
                world.abort(data.draw(st.integers(0, len(world.seen))))
    world.finish()
    stats = world.engine.stats()
    event(f"preempted: {stats.preemptions_total > 0}")
    event(f"shared: {stats.prefix_hits_total > 0}")
    assert stats.prefix_hits_total % BLOCK_TOKENS == 0
    assert stats.blocks_used == stats.running == stats.waiting == 0
