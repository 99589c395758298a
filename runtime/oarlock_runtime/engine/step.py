"""From what a step shall compute to the arrays of its plan. Engine process.

Rows come in the order: decoding sequences, one token each, then the chunks of prompts. Between two steps the kernels
sweep the processor's caches, so that what the host does here costs several times what it does in a loop of its own;
most steps decode the same sequences as the one before, and are made of that one by `next_step`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.plan import BLOCK_TOKENS, Float32s, Int32s, StepPlan
from oarlock_runtime.engine.sequences import NEEDS_BIAS, NEEDS_FILTER, NEEDS_HISTORY, NEEDS_LOGPROBS, Seats, Sequences


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start .. start + count of one sequence, to be computed in this step.

    The rows of the last `scored` positions before the prompt's end report the log-probability of the token that follows
    them; `draws`: the last row draws the next token.
    """

    seat: int
    start: int
    count: int
    score_from: int
    scored: int
    draws: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """Rows of a result that hold prompt log-probabilities."""

    seat: int
    arrival: int
    first_token: int  # index in the prompt of the first row's target
    rows: slice


@dataclass(frozen=True, slots=True)
class Drawing:
    """The rows of a step that draw a token, and what no step changes of their sequences."""

    rows: npt.NDArray[np.intp]  # [D]
    seats: Seats  # [D]
    arrivals: npt.NDArray[np.int64]  # [D] who sat there: a seat may have changed hands when the result comes
    request_ids: npt.NDArray[np.int64]  # [D]
    stops: Int32s  # [D, most stop tokens]
    needs: int  # NEEDS_… of any of them
    departures: int  # sequences that had left their seats until then


@dataclass(slots=True)
class Step:
    """A plan, and what is needed to understand its result when it comes."""

    plan: StepPlan
    drawing: Drawing
    scores: list[Scores]
    context_tokens: int  # of all sequences
    quiet: int  # this many steps, from this one on, decode alone, and fill no block and bring no sequence to its limit


def next_step(last: Step, sequences: Sequences, ahead: bool) -> Step:
    """The step after `last`, which is quiet, with the same sequences.

    ahead: `last` is still to be committed.
    """
    plan, drawing = last.plan, last.drawing
    context_lens: Int32s = plan.context_lens + np.int32(1)
    plan = StepPlan(
        token_ids=np.zeros(len(context_lens), np.int32) if ahead else sequences.last_token[drawing.seats],
        positions=plan.context_lens,
        slots=plan.slots + np.int32(1),
        query_starts=plan.query_starts,
        context_lens=context_lens,
        block_tables=plan.block_tables,
        sample_rows=plan.sample_rows,
        temperature=plan.temperature,
        top_p=plan.top_p,
        min_p=plan.min_p,
        top_k=plan.top_k,
        seed=plan.seed,
        draw=plan.draw + np.int32(1),
        token_sources=plan.sample_rows if ahead else None,
        top_logprobs=plan.top_logprobs,
    )
    sequences.computed[drawing.seats] = context_lens
    return Step(plan, drawing, [], last.context_tokens + len(context_lens), last.quiet - 1)


def build_step(sequences: Sequences, decoding: Seats, chunks: list[Chunk], vocab: int, ahead: bool = False) -> Step:
    """`decoding` sequences compute their last token; all blocks are in the tables.

    ahead: the step before this one draws those tokens and is still to be committed.
    """
    s = sequences
    ones = len(decoding)
    positions: Int32s = s.computed[decoding]
    token_ids: Int32s = np.zeros(ones, np.int32) if ahead else s.last_token[decoding]
    token_sources: Int32s | None = s.draw_row[decoding] if ahead and ones else None
    blocks: Int32s = s.block_tables[decoding, positions // BLOCK_TOKENS]
    query_starts = np.arange(ones + len(chunks) + 1, dtype=np.int32)
    context_lens: Int32s = positions + np.int32(1)
    row_seats, draw_rows, draw_seats = decoding, np.arange(ones), decoding
    row_lengths = context_lens  # of the rows' sequences, when the row draws
    sample_rows: Int32s = query_starts[:ones]
    targets: Int32s | None = None
    scores: list[Scores] = []
    seats = decoding
    if chunks:
        seats = np.concatenate((decoding, np.array([c.seat for c in chunks], np.intp)))
        ends = [c.start + c.count for c in chunks]
        query_starts[ones + 1 :] = ones + np.cumsum([c.count for c in chunks])
        context_lens = np.concatenate((context_lens, np.array(ends, np.int32)))
        spans = [np.arange(c.start, end, dtype=np.int32) for c, end in zip(chunks, ends, strict=True)]
        tables = zip(chunks, spans, strict=True)
        blocks = np.concatenate((blocks, *(s.block_tables[c.seat, span // BLOCK_TOKENS] for c, span in tables)))
        token_ids = np.concatenate(
            (token_ids, *(s.tokens[c.seat, c.start : end] for c, end in zip(chunks, ends, strict=True)))
        )
        positions = np.concatenate((positions, *spans))
        if token_sources is not None:
            token_sources = np.concatenate((token_sources, np.full(len(token_ids) - ones, -1, np.int32)))
        rows = _Rows(s, chunks, query_starts[ones:], ones)
        row_seats = np.concatenate((decoding, rows.seats))
        row_lengths = np.concatenate((row_lengths[:ones], s.length[rows.seats]))
        draw_rows = np.concatenate((draw_rows, rows.draws))
        draw_seats = row_seats[draw_rows]
        sample_rows = np.concatenate((sample_rows, rows.tokens))
        scores = rows.scores
        if scores:
            targets = np.concatenate((np.full(ones, -1, np.int32), rows.targets))

    floats = s.floats.take(row_seats, axis=1)
    plan = StepPlan(
        token_ids=token_ids,
        positions=positions,
        slots=blocks * np.int32(BLOCK_TOKENS) + positions % BLOCK_TOKENS,
        query_starts=query_starts,
        context_lens=context_lens,
        block_tables=s.block_tables[seats, : -(-int(context_lens.max()) // BLOCK_TOKENS)],
        sample_rows=sample_rows,
        temperature=floats[0],
        top_p=floats[1],
        min_p=floats[2],
        top_k=s.top_k[row_seats],
        seed=s.seed[row_seats],
        draw=row_lengths - s.prompt_length[row_seats],
        token_sources=token_sources,
        target=targets,
    )
    s.draw_row[draw_seats] = draw_rows
    s.computed[decoding] = context_lens[:ones]
    needs = s.needs[draw_seats]
    drawing = Drawing(
        draw_rows,
        draw_seats,
        s.arrival[draw_seats],
        s.request_id[draw_seats],
        s.stops[draw_seats],
        int(np.bitwise_or.reduce(needs)) if len(needs) else 0,
        s.departures,
    )
    _add_optional_groups(plan, s, row_seats, row_lengths, drawing, needs, floats)
    _add_masks(plan, s, drawing, needs, vocab)
    quiet = 0 if chunks else _quiet(s, decoding, context_lens)
    return Step(plan, drawing, scores, int(context_lens.sum()), quiet)


def _quiet(s: Sequences, decoding: Seats, context_lens: Int32s) -> int:
    """Steps until a block is full or a limit reached, this one included."""
    to_full_block = -context_lens % BLOCK_TOKENS
    to_limit = s.limit[decoding] - context_lens - 1
    return int(np.minimum(to_full_block, to_limit).min())


class _Rows:
    """The rows of logits that chunks ask for, after `before` rows of decoding sequences."""

    def __init__(self, s: Sequences, chunks: list[Chunk], starts: Int32s, before: int) -> None:
        tokens, seats, draws, targets = [], [], [], []
        self.scores: list[Scores] = []
        row = before
        for chunk, start in zip(chunks, starts.tolist(), strict=False):
            if chunk.scored:
                first = start + chunk.score_from - chunk.start
                tokens.append(np.arange(first, first + chunk.scored, dtype=np.int32))
                target = chunk.score_from + 1
                targets.append(s.tokens[chunk.seat, target : target + chunk.scored])
                seats += [chunk.seat] * chunk.scored
                rows = slice(row, row + chunk.scored)
                self.scores.append(Scores(chunk.seat, int(s.arrival[chunk.seat]), target, rows))
                row += chunk.scored
            if chunk.draws:
                tokens.append(np.array([start + chunk.count - 1], np.int32))
                targets.append(np.array([-1], np.int32))
                seats.append(chunk.seat)
                draws.append(row)
                row += 1
        nothing = np.zeros(0, np.int32)
        self.tokens: Int32s = np.concatenate((nothing, *tokens))  # [rows] index among the step's tokens
        self.targets: Int32s = np.concatenate((nothing, *targets))  # [rows]
        self.seats: Seats = np.array(seats, np.intp)  # [rows]
        self.draws = np.array(draws, np.intp)  # the rows that draw


def _add_optional_groups(
    plan: StepPlan,
    s: Sequences,
    row_seats: Seats,
    row_lengths: Int32s,
    drawing: Drawing,
    needs: npt.NDArray[np.uint8],
    floats: Float32s,
) -> None:
    """Log-probabilities, penalties and bias, where a sequence of this step needs them."""
    wanted, draw_rows, draw_seats = drawing.needs, drawing.rows, drawing.seats
    rows = len(row_seats)
    if wanted & NEEDS_LOGPROBS or plan.target is not None:
        plan.top_logprobs = s.top_logprobs[row_seats]
    if plan.target is not None and plan.top_logprobs is not None:
        for row in np.flatnonzero(plan.target >= 0).tolist():
            plan.top_logprobs[row] = s.request_of(int(row_seats[row])).sampling.prompt_logprobs
    if wanted & NEEDS_HISTORY:
        chosen = np.flatnonzero(needs & NEEDS_HISTORY)
        found = [s.history[seat] for seat in draw_seats[chosen].tolist()]
        columns = [history.columns for history in found if history is not None]
        plan.repetition_penalty, plan.presence_penalty, plan.frequency_penalty = floats[3], floats[4], floats[5]
        plan.history_starts = _starts(rows, draw_rows[chosen], [part.shape[1] for part in columns])
        plan.history_ids, plan.history_counts = np.concatenate(columns, axis=1)
    if wanted & NEEDS_BIAS:
        chosen = np.flatnonzero(needs & NEEDS_BIAS)
        s.lift_bans(draw_seats[chosen], row_lengths[draw_rows[chosen]])
        biases = [s.bias[seat] for seat in draw_seats[chosen].tolist()]
        plan.bias_starts = _starts(rows, draw_rows[chosen], [len(ids) for ids, _ in biases])
        plan.bias_ids = np.concatenate([ids for ids, _ in biases])
        plan.bias_values = np.concatenate([values for _, values in biases])


def _add_masks(plan: StepPlan, s: Sequences, drawing: Drawing, needs: npt.NDArray[np.uint8], vocab: int) -> None:
    """The tokens that may be drawn, for the sequences whose answers follow a grammar."""
    if not drawing.needs & NEEDS_FILTER:
        return
    chosen = np.flatnonzero(needs & NEEDS_FILTER)
    masks = np.zeros((len(chosen), -(-vocab // 32)), np.uint32)
    for mask, seat in zip(masks, drawing.seats[chosen].tolist(), strict=True):
        token_filter = s.request_of(seat).filter
        assert token_filter is not None
        token_filter.allow(mask)
    plan.masks = masks
    plan.mask_rows = np.full(len(plan.sample_rows), -1, np.int32)
    plan.mask_rows[drawing.rows[chosen]] = np.arange(len(chosen))


def _starts(rows: int, chosen: Seats, lengths: Iterable[int]) -> Int32s:
    """[rows + 1] where each row's part begins, when only the chosen rows have one."""
    starts = np.zeros(rows + 1, np.int32)
    starts[chosen + 1] = np.fromiter(lengths, np.int32)
    return np.cumsum(starts, dtype=np.int32)
