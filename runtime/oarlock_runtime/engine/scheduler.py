"""Which tokens are computed next, and what becomes of the result. Engine process.

Decoding sequences come first, one token each; what is left of the step's budget of tokens goes to prompts, in chunks,
in order of arrival. A sequence is admitted when its whole prompt has blocks, with some room left for those that run.
When a decoding sequence finds no block, the last that arrived gives its blocks back and is computed again later.

schedule() reads and writes queues, block tables and `computed`; commit() reads and writes tokens, lengths and endings.
They meet only in the list of steps in flight, so that an overlapped loop may schedule step N + 1 before it commits
step N: a decoding sequence's position, slot and context follow from `computed`, its token is fed forward on the device,
and one that reaches its limit in step N is left out. One that turns out to have ended otherwise has computed a token in
vain: commit() passes over sequences that have left their seat. Executors run steps in order, so that a block freed
while a step is in flight may be given away at once: whatever that step writes there is overwritten before it is read.
What can't be planned ahead waits for the result: penalties and grammars, which look at the token, and preemption.
"""

import bisect
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.kv_cache import Claim, KvCache
from oarlock_runtime.engine.outcome import apply_result
from oarlock_runtime.engine.output import StepOutput
from oarlock_runtime.engine.plan import StepPlan, StepResult
from oarlock_runtime.engine.request import Finish, Request, check_request
from oarlock_runtime.engine.sequences import NEEDS_BIAS, NEEDS_FILTER, NEEDS_HISTORY, Seats, Sequences
from oarlock_runtime.engine.step import Chunk, Step, build_step, next_step
from oarlock_runtime.engine.waiting import WaitingQueue
from oarlock_runtime.errors import RequestError

ADMISSION_SCAN = 64  # waiting requests looked at in a step


@dataclass(slots=True)
class Counters:
    """What the scheduler counts; EngineStats says what for."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    computed_tokens: int = 0
    context_tokens: int = 0  # read from the KV cache
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Budget:
    """What is left of a step, and the chunks that were cut from it."""

    tokens: int
    rows: int
    chunks: list[Chunk]


class Scheduler:
    """Continuous batching over one executor's KV pool. Not thread-safe; times are the caller's clock, in seconds."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.sequences = Sequences(config.max_sequences, config.longest, config.eos_ids)
        self.cache = KvCache(config.blocks, self.sequences, config.prefix_cache)
        self.waiting = WaitingQueue(config.max_waiting)
        self.counters = Counters()
        self.decoding: Seats = np.zeros(0, np.intp)
        self.prefilling: list[int] = []  # seats, in order of admission
        self.preempted: list[int] = []  # seats, in order of arrival
        self._seats: dict[int, int] = {}  # request id to seat
        self._in_flight: deque[Step] = deque()
        self._last: Step | None = None  # that was scheduled

    @property
    def has_work(self) -> bool:
        return bool(self._seats or len(self.waiting) or self._in_flight)

    @property
    def in_flight(self) -> int:
        """Steps that were scheduled and not committed."""
        return len(self._in_flight)

    @property
    def request_ids(self) -> list[int]:
        """All requests, seated or waiting."""
        return [*self._seats, *(entry.request.request_id for entry in self.waiting)]

    def holds(self, request_id: int) -> bool:
        """Whether the request is seated or waiting."""
        return request_id in self._seats or request_id in self.waiting

    def add(self, request: Request, now: float) -> None:
        """Queues a request. Raises RequestError when it can never be served, QueueFull when it can't wait."""
        check_request(request, self.config.vocab, self.config.longest)
        if self.holds(request.request_id):
            raise RequestError("request_id", f"request_id {request.request_id} is in use")
        self.waiting.add(request, now, self.sequences.vacant)

    def abort(self, request_ids: Iterable[int]) -> list[int]:
        """Ends requests between two steps, and returns those that were there."""
        ended = []
        for request_id in request_ids:
            seat = self._seats.get(request_id)
            if seat is not None:
                self._leave(seat)
            if seat is not None or self.waiting.remove(request_id):
                ended.append(request_id)
        self._forget_vacant()
        self.counters.aborted += len(ended)
        return ended

    # ---- the step

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is no work or, with a step in flight, none that needs no result of it."""
        step = self._same_again() or self._build(now)
        if step is None:
            return None
        self._last = step
        self._in_flight.append(step)
        self.counters.computed_tokens += len(step.plan.token_ids)
        self.counters.context_tokens += step.context_tokens
        return step.plan

    def _same_again(self) -> Step | None:
        """The next step, if it only goes on with what the last one did."""
        last, s = self._last, self.sequences
        if last is None or last.quiet == 0 or last.drawing.seats is not self.decoding:
            return None
        if self.prefilling or self.preempted or (len(self.waiting) and s.vacant):
            return None
        if last.drawing.needs & (NEEDS_HISTORY | NEEDS_BIAS | NEEDS_FILTER):
            return None
        return next_step(last, s, ahead=bool(self._in_flight))

    def _build(self, now: float) -> Step | None:
        if not self._grow():
            return None
        decoding = self._going_on()
        running = len(decoding)
        budget = _Budget(self.config.max_batched_tokens - running, self.config.max_rows - running, [])
        for seat in self.prefilling:
            self._take_chunk(seat, budget)
        self._admit(budget, now)
        if not running and not budget.chunks:
            return None
        step = build_step(self.sequences, decoding, budget.chunks, self.config.vocab, ahead=bool(self._in_flight))
        prefilled = [chunk.seat for chunk in budget.chunks if chunk.draws]
        if prefilled:
            self.prefilling = [seat for seat in self.prefilling if seat not in prefilled]
            self.decoding = np.concatenate((self.decoding, np.array(prefilled, np.intp)))
        return step

    def commit(self, result: StepResult) -> StepOutput:
        """Takes the result of the oldest step in flight."""
        outcome = apply_result(self._in_flight.popleft(), result, self.sequences)
        for seat in outcome.filled:
            self.cache.publish_decoded(seat, int(self.sequences.length[seat]) - 1)
        for seat, finish in outcome.ended:
            self._leave(seat, forget=finish == Finish.ERROR)
        if outcome.ended:
            self._forget_vacant()
            failed = len(outcome.output.failures)
            self.counters.failed += failed
            self.counters.finished += len(outcome.ended) - failed
        drawn = outcome.output.token_ids
        self.counters.generation_tokens += int(np.count_nonzero(drawn >= 0)) if outcome.ended else len(drawn)
        return outcome.output

    # ---- blocks for the running

    def _going_on(self) -> Seats:
        """The decoding sequences that the step in flight, if there is one, does not bring to their limit."""
        if not self._in_flight:
            return self.decoding
        s = self.sequences
        going: Seats = self.decoding[s.computed[self.decoding] + 1 < s.limit[self.decoding]]
        return going

    def _grow(self) -> bool:
        """Gives a block to each sequence that needs one for its next token; False when a result must come first."""
        if self._in_flight and (self.sequences.needs[self._going_on()] & (NEEDS_HISTORY | NEEDS_FILTER)).any():
            return False
        while len(needy := self.cache.without_block(self._going_on())) > self.cache.pool.available:
            if self._in_flight:
                return False  # it may end sequences, which leave their blocks
            self._preempt_last_arrived()
        if len(needy):
            self.cache.append_block(needy)
        return True

    def _preempt_last_arrived(self) -> None:
        def arrival(seat: int) -> int:
            return int(self.sequences.arrival[seat])

        seat = max([*self.decoding.tolist(), *self.prefilling], key=arrival)
        self.cache.give_back(seat)
        self.decoding = self.decoding[self.decoding != seat]
        self.prefilling = [other for other in self.prefilling if other != seat]
        bisect.insort(self.preempted, seat, key=arrival)
        self.counters.preemptions += 1

    # ---- prompts

    def _take_chunk(self, seat: int, budget: _Budget) -> None:
        """Cuts as much of a sequence's prompt from the budget as there is."""
        s = self.sequences
        start, length, scored = int(s.computed[seat]), int(s.length[seat]), int(s.scored[seat])
        last_scored = int(s.prompt_length[seat]) - 1  # the prompt's last row has no next token to score
        scoring = scored < last_scored and s.request_of(seat).sampling.prompt_logprobs >= 0
        count = min(length - start, budget.tokens)
        if scoring:
            count = min(count, max(scored - start, 0) + budget.rows)
        elif not budget.rows:
            count = min(count, length - start - 1)
        if count <= 0:
            return
        end = start + count
        score_from = max(start, scored)
        score_to = max(score_from, min(end, last_scored)) if scoring else score_from
        if scoring:
            s.scored[seat] = score_to
        s.computed[seat] = end
        self.cache.publish(seat, start, end)
        budget.tokens -= count
        budget.rows -= score_to - score_from + (end == length)
        budget.chunks.append(Chunk(seat, start, count, score_from, score_to - score_from, draws=end == length))

    def _admit(self, budget: _Budget, now: float) -> None:
        """Preempted sequences first, then the queue. The first that finds too few blocks holds up those behind it, but
        one whose next block is being computed for another lets them pass: it will share that block in a later step."""
        if budget.tokens <= 0 or not (self.preempted or len(self.waiting)):
            return
        s = self.sequences
        room = self.cache.room_wanted(np.array([*self.decoding.tolist(), *self.prefilling], np.intp))
        while self.preempted:
            if budget.tokens <= 0:
                return
            seat = self.preempted[0]
            self.cache.complete_chain(seat)
            claim = self.cache.claim(s.request_of(seat), s.chain[seat], int(s.length[seat]), int(s.limit[seat]), room)
            if claim is None:
                return
            del self.preempted[0]
            self._start(seat, claim, budget)
            room += claim.room
        admitted = 0
        for entry in list(itertools.islice(self.waiting, ADMISSION_SCAN)):
            if budget.tokens <= 0 or not s.vacant or admitted == self.config.max_admissions:
                return
            if self.cache.is_computing(entry.awaited):
                continue
            request = entry.request
            if entry.chain is None:
                entry.chain = self.cache.prompt_chain(request)
            entry.awaited = self.cache.awaited(request, entry.chain)
            if entry.awaited is not None:
                continue
            limit = request.limit(self.config.longest)
            claim = self.cache.claim(request, entry.chain, len(request.prompt), limit, room)
            if claim is None:
                return
            seat = s.sit(request, entry.chain, entry.arrival, limit)
            self._seats[request.request_id] = seat
            self.waiting.admit(entry, now)
            s.note_start(seat, claim.hit, now - entry.since)
            self.counters.prompt_tokens += len(request.prompt)
            self.counters.prefix_queries += len(request.prompt)
            self.counters.prefix_hits += int(s.cached_tokens[seat])
            self._start(seat, claim, budget)
            room += claim.room
            admitted += 1

    def _start(self, seat: int, claim: Claim, budget: _Budget) -> None:
        self.cache.start(seat, claim)
        self.prefilling.append(seat)
        self._take_chunk(seat, budget)

    # ---- leaving

    def _leave(self, seat: int, forget: bool = False) -> None:
        del self._seats[int(self.sequences.request_id[seat])]
        self.cache.give_back(seat, forget)
        self.sequences.leave(seat)

    def _forget_vacant(self) -> None:
        taken = self.sequences.request_id
        self.decoding = self.decoding[taken[self.decoding] >= 0]
        self.prefilling = [seat for seat in self.prefilling if taken[seat] >= 0]
        self.preempted = [seat for seat in self.preempted if taken[seat] >= 0]
