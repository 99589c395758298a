"""From a step's result to the next state of its sequences and to what their clients are told. Engine process."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.output import Int32s, PromptLogprobs, RequestFailure, Started, StepOutput, TokenLogprobs
from oarlock_runtime.engine.plan import BLOCK_TOKENS, StepResult
from oarlock_runtime.engine.request import Finish
from oarlock_runtime.engine.sequences import NEEDS_FILTER, NEEDS_HISTORY, Seats, Sequences
from oarlock_runtime.engine.step import Scores, Step

NO_DISTRIBUTION = "the model's output held NaN, or the request's constraints left no token to choose"


@dataclass(slots=True)
class Outcome:
    """What the scheduler has to act on."""

    output: StepOutput
    ended: list[tuple[int, Finish]]  # seat
    filled: list[int]  # seats whose last cached token filled a block


def apply_result(step: Step, result: StepResult, s: Sequences) -> Outcome:
    """Appends the drawn tokens to their sequences and finds those that end with them.

    A sequence that has left its seat since the step was planned is passed over: it was aborted, or the step before
    this one, which was not known yet, ended it.
    """
    drawing = step.drawing
    rows, seats, request_ids, stops = drawing.rows, drawing.seats, drawing.request_ids, drawing.stops
    if drawing.departures != s.departures:
        stayed = s.arrival[seats] == drawing.arrivals
        rows, seats, request_ids, stops = rows[stayed], seats[stayed], request_ids[stayed], stops[stayed]
    tokens: Int32s = result.token[rows]
    cached: Int32s = s.length[seats]  # the row that drew was the sequence's last token
    lengths = cached + np.int32(1)
    s.tokens[seats, cached] = tokens
    s.last_token[seats] = tokens
    s.length[seats] = lengths

    finish = np.zeros(len(seats), np.uint8)
    if not step.quiet:
        finish[lengths >= s.limit[seats]] = Finish.LENGTH
    stopped = stops == tokens[:, np.newaxis]
    if stopped.any():
        finish[stopped.any(axis=1)] = Finish.STOP
    status = result.status[rows]
    if status.any():
        finish[status != 0] = Finish.ERROR
    if drawing.needs & (NEEDS_HISTORY | NEEDS_FILTER):
        _follow(seats, tokens, finish, s)

    output = StepOutput(request_ids, tokens, finish)
    if step.plan.top_logprobs is not None:
        output.logprobs = _token_logprobs(s, rows, seats, finish, result)
    broken = _add_prompt_logprobs(output, step.scores, result, s)
    if step.quiet and not finish.any():
        return Outcome(output, [], [])
    output.started = _started(s, seats, cached)
    ended = _end(output, seats, broken, s)
    return Outcome(output, ended, seats[cached % BLOCK_TOKENS == 0].tolist())


def _follow(seats: Seats, tokens: Int32s, finish: npt.NDArray[np.uint8], s: Sequences) -> None:
    """Shows the tokens to what follows a sequence's text: the history of its penalties, its grammar."""
    for place in np.flatnonzero(s.needs[seats] & NEEDS_HISTORY).tolist():
        history = s.history[seats[place]]
        assert history is not None
        history.append(int(tokens[place]))

    for place in np.flatnonzero((s.needs[seats] & NEEDS_FILTER != 0) & (finish == Finish.RUNNING)).tolist():
        token_filter = s.request_of(int(seats[place])).filter
        assert token_filter is not None
        if not token_filter.accept(int(tokens[place])):
            finish[place] = Finish.ERROR


def _started(s: Sequences, seats: Seats, cached: Int32s) -> Started | None:
    entries = np.flatnonzero(cached == s.prompt_length[seats])
    if not len(entries):
        return None
    first = seats[entries]
    return Started(entries.astype(np.int32), s.cached_tokens[first], s.queue_seconds[first])


def _token_logprobs(
    s: Sequences, rows: Seats, seats: Seats, finish: npt.NDArray[np.uint8], result: StepResult
) -> TokenLogprobs | None:
    wanted = s.top_logprobs[seats]
    entries = np.flatnonzero((wanted >= 0) & (finish != Finish.ERROR))
    if not len(entries):
        return None
    width, chosen = int(wanted[entries].max()), rows[entries]
    return TokenLogprobs(
        entries.astype(np.int32),
        result.logprob[chosen],
        result.top_ids[chosen, :width],
        result.top_logprobs[chosen, :width],
    )


def _add_prompt_logprobs(output: StepOutput, scores: list[Scores], result: StepResult, s: Sequences) -> list[int]:
    """Returns the seats whose prompt could not be scored."""
    broken = []
    for part in scores:
        if s.arrival[part.seat] != part.arrival:
            continue
        if result.status[part.rows].any():
            broken.append(part.seat)
            continue
        width = s.request_of(part.seat).sampling.prompt_logprobs
        output.prompt_logprobs.append(
            PromptLogprobs(
                int(s.request_id[part.seat]),
                part.first_token,
                result.logprob[part.rows].copy(),
                result.top_ids[part.rows, :width].copy(),
                result.top_logprobs[part.rows, :width].copy(),
            )
        )
    return broken


def _end(output: StepOutput, seats: Seats, broken: list[int], s: Sequences) -> list[tuple[int, Finish]]:
    """Settles the entries of requests that end: what is said of their last token, and why they failed."""
    for seat in broken:
        own = seats == seat
        output.finish[own] = Finish.ERROR
        if not own.any():
            seats = np.append(seats, seat)
            output.request_ids = np.append(output.request_ids, s.request_id[seat])
            output.token_ids = np.append(output.token_ids, np.int32(-1))
            output.finish = np.append(output.finish, np.uint8(Finish.ERROR))
    ended: list[tuple[int, Finish]] = []
    for place in np.flatnonzero(output.finish).tolist():
        leaving, finish = int(seats[place]), Finish(int(output.finish[place]))
        if finish == Finish.ERROR:
            output.token_ids[place] = -1
            output.failures.append(RequestFailure(int(output.request_ids[place]), NO_DISTRIBUTION))
        elif s.request_of(leaving).sampling.max_tokens == 0:
            output.token_ids[place] = -1
            output.finish[place] = finish = Finish.LENGTH
        ended.append((leaving, finish))
    return ended
