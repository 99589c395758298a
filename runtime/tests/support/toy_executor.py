"""An executor without a model: the next token is a checksum of the whole context, read back through the block tables.

A wrong slot, position, block table, sampling row or history changes the token, and reading a place that holds another
position's token fails at once. `expected_tokens` says what must come out, without any engine.
"""

import zlib
from collections import Counter, deque
from dataclasses import replace

import numpy as np

from oarlock_runtime.engine.plan import BLOCK_TOKENS, StepPlan, StepResult
from oarlock_runtime.engine.request import Finish, Request
from oarlock_runtime.engine.sampling import MAX_TOP_LOGPROBS, SamplingParams


class ToyExecutor:
    """Takes two steps, as a device does that runs behind: the second may name the first's tokens by their rows."""

    def __init__(
        self, vocab: int, blocks: int, *, broken_token: int = -1, max_tokens: int = 0, max_rows: int = 0
    ) -> None:
        self.vocab = vocab
        self.max_tokens, self.max_rows = max_tokens or 1 << 30, max_rows or 1 << 30
        self.broken_token = broken_token  # a context that ends with it has NaN for logits
        self.steps = 0
        self._tokens = np.full(blocks * BLOCK_TOKENS, -1, np.int64)
        self._positions = np.full(blocks * BLOCK_TOKENS, -1, np.int64)
        self._plans: deque[StepPlan] = deque()
        self._drawn = np.zeros(0, np.int32)

    def submit(self, plan: StepPlan) -> None:
        assert len(self._plans) < 2
        assert self._plans or plan.token_sources is None, "there is no step to take tokens from"
        self._plans.append(plan)

    def collect(self) -> StepResult:
        plan = self._plans.popleft()
        self.steps += 1
        if plan.token_sources is not None:
            plan = replace(plan, token_ids=plan.token_ids.copy())
            fed = plan.token_sources >= 0
            plan.token_ids[fed] = self._drawn[plan.token_sources[fed]]
        for array in (plan.token_ids, plan.positions, plan.slots, plan.query_starts, plan.context_lens, plan.top_k):
            assert array.dtype == np.int32 and array.flags.c_contiguous
        assert plan.block_tables.flags.c_contiguous
        assert len(plan.token_ids) <= self.max_tokens and len(plan.sample_rows) <= self.max_rows
        assert len(set(plan.slots.tolist())) == len(plan.slots), "two tokens in one slot"
        self._tokens[plan.slots] = plan.token_ids
        self._positions[plan.slots] = plan.positions
        rows = [self._row(plan, row) for row in range(len(plan.sample_rows))]
        self._drawn = np.array([row[0] for row in rows], np.int32)
        return StepResult(
            token=self._drawn,
            logprob=np.array([row[1] for row in rows], np.float32),
            top_ids=np.array([row[2] for row in rows], np.int32).reshape(-1, MAX_TOP_LOGPROBS),
            top_logprobs=np.array([row[3] for row in rows], np.float32).reshape(-1, MAX_TOP_LOGPROBS),
            status=np.array([row[4] for row in rows], np.int32),
        )

    def _context(self, plan: StepPlan, token: int) -> np.ndarray:
        sequence = int(np.searchsorted(plan.query_starts, token, side="right")) - 1
        start, end = plan.query_starts[sequence : sequence + 2].tolist()
        assert plan.context_lens[sequence] == plan.positions[end - 1] + 1
        assert plan.positions[token] - plan.positions[start] == token - start
        positions = np.arange(int(plan.positions[token]) + 1)
        slots = plan.block_tables[sequence, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        assert (self._positions[slots] == positions).all(), "a place holds another position's token"
        return self._tokens[slots]

    def _row(self, plan: StepPlan, row: int) -> tuple[int, float, list[int], list[float], int]:
        context = self._context(plan, int(plan.sample_rows[row]))
        wanted = 0 if plan.top_logprobs is None else max(0, int(plan.top_logprobs[row]))
        top = [toy_alternative(context, place, self.vocab) for place in range(wanted)]
        top += [(-1, np.nan)] * (MAX_TOP_LOGPROBS - wanted)
        history = None
        if plan.history_starts is not None:
            part = slice(plan.history_starts[row], plan.history_starts[row + 1])
            entries = zip(plan.history_ids[part].tolist(), plan.history_counts[part].tolist(), strict=True)
            penalties = (plan.repetition_penalty[row], plan.presence_penalty[row], plan.frequency_penalty[row])
            history = (sorted(entries), [float(penalty) for penalty in penalties])
            if penalties == (1, 0, 0):
                history = None
        bias = {}
        if plan.bias_starts is not None:
            part = slice(plan.bias_starts[row], plan.bias_starts[row + 1])
            for token, value in zip(plan.bias_ids[part].tolist(), plan.bias_values[part].tolist(), strict=True):
                bias[token] = bias.get(token, 0.0) + value
        token = toy_token(
            context,
            self.vocab,
            float(plan.temperature[row]),
            (float(plan.top_p[row]), float(plan.min_p[row]), int(plan.top_k[row])),
            (int(plan.seed[row]), int(plan.draw[row])),
            history,
            bias,
        )
        if plan.target is not None and plan.target[row] >= 0:
            token = int(plan.target[row])
        status = int(context[-1] == self.broken_token)
        return token, toy_logprob(context, token), [i for i, _ in top], [value for _, value in top], status


def _checksum(context: np.ndarray, *parts: object) -> int:
    return zlib.crc32(repr(parts).encode(), zlib.crc32(context.astype(np.int64).tobytes()))


def toy_logprob(context: np.ndarray, token: int) -> float:
    return -(_checksum(context, token) % 1000) / 128


def toy_alternative(context: np.ndarray, place: int, vocab: int) -> tuple[int, float]:
    token = (_checksum(context) + place) % vocab
    return token, toy_logprob(context, token)


def toy_token(
    context: np.ndarray,
    vocab: int,
    temperature: float,
    filters: tuple[float, float, int],
    draw: tuple[int, int],
    history: tuple[list[tuple[int, int]], list[float]] | None,
    bias: dict[int, float],
) -> int:
    finite = sorted((token, value) for token, value in bias.items() if np.isfinite(value))
    drawn = (temperature, filters, draw) if temperature else None
    token = _checksum(context, drawn, history, finite) % vocab
    while bias.get(token, 0.0) == -np.inf:
        token = (token + 1) % vocab
    return token


def _history(counts: Counter[int], sampling: SamplingParams) -> list[tuple[int, int]]:
    """Only a repetition penalty looks at tokens that are in the prompt alone."""
    return sorted((token, count) for token, count in counts.items() if count or sampling.repetition_penalty != 1)


def expected_tokens(
    request: Request, vocab: int, eos_ids: tuple[int, ...], longest: int, broken_token: int = -1
) -> tuple[list[int], Finish]:
    """What a request with a seed must get, whatever else runs."""
    sampling = request.sampling
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_ids))
    context, output = request.prompt.tolist(), []
    counts = Counter(dict.fromkeys(context, 0))
    while True:
        if context[-1] == broken_token:
            return output, Finish.ERROR
        bias = {token: float(np.float32(value)) for token, value in sampling.logit_bias.items()}
        if len(output) < sampling.min_tokens:
            bias |= dict.fromkeys(stops, -np.inf)
        penalties = [sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty]
        token = toy_token(
            np.array(context),
            vocab,
            float(np.float32(sampling.temperature)),
            (float(np.float32(sampling.top_p)), float(np.float32(sampling.min_p)), max(sampling.top_k, 0)),
            ((sampling.seed or 0) % (1 << 64), len(output)),
            (_history(counts, sampling), [float(np.float32(p)) for p in penalties]) if sampling.penalized else None,
            bias,
        )
        if sampling.max_tokens == 0:
            return [], Finish.LENGTH
        output.append(token)
        context.append(token)
        counts[token] += 1
        if token in stops:
            return output, Finish.STOP
        if len(output) == sampling.max_tokens or len(context) == longest:
            return output, Finish.LENGTH
