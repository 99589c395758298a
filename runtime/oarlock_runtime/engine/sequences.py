"""All admitted sequences, as a structure of arrays: one row, here called a seat, a sequence. Engine process.

A step touches hundreds of sequences and a few facts of each, so that numpy gathers a fact for all of them at once
where objects would cost a microsecond each. Arrays are written when a sequence sits down and read by seat index; a free
seat's entries mean nothing.
"""

import contextlib
import mmap
import random

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.history import History
from oarlock_runtime.engine.plan import BLOCK_TOKENS
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import GREEDY_BELOW

SEED_MASK = (1 << 64) - 1

Seats = npt.NDArray[np.intp]

# Bits of `needs`: the optional parts of a plan that a sequence asks for.
NEEDS_HISTORY, NEEDS_BIAS, NEEDS_LOGPROBS, NEEDS_FILTER = 1, 2, 4, 8


class Sequences:
    """Room for `seats` sequences of up to `max_context` tokens, of a model that ends at one of `eos_ids`."""

    def __init__(self, seats: int, max_context: int, eos_ids: tuple[int, ...]) -> None:
        self._free = list(range(seats - 1, -1, -1))  # a stack, so that few rows of the token store are ever touched
        self._eos_ids = eos_ids
        self.departures = 0  # sequences that have left their seats
        self.tokens = _lazy_int32s(seats, max_context)  # prompt and output
        self.block_tables = _lazy_int32s(seats, -(-max_context // BLOCK_TOKENS))

        # Facts that a step gathers together lie in one matrix, [fact, seat]; the names below are its rows.
        self.integers = np.zeros((7, seats), np.int32)
        (
            self.length,  # tokens known
            self.computed,  # tokens whose keys and values are cached, or will be by the steps submitted so far
            self.last_token,  # drawn by the last step that was committed
            self.draw_row,  # row that drew in the last step that was submitted
            self.prompt_length,
            self.top_k,
            self.top_logprobs,
        ) = self.integers
        self.floats = np.zeros((6, seats), np.float32)
        (
            self.temperature,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        ) = self.floats
        self.seed = np.zeros(seats, np.uint64)
        self.blocks_held = np.zeros(seats, np.int32)
        self.limit = np.zeros(seats, np.int32)  # length at which it ends
        self.stops = np.full((seats, max(4, len(eos_ids))), -1, np.int32)  # tokens at which it ends; -1 = none
        self.banned_until = np.zeros(seats, np.int32)  # length below which no stop may be drawn; 0 = none
        self.needs = np.zeros(seats, np.uint8)

        self.request_id = np.full(seats, -1, np.int64)
        self.arrival = np.full(seats, -1, np.int64)  # number of the request, in order of arrival; no two have the same
        self.cached_tokens = np.zeros(seats, np.int32)
        self.queue_seconds = np.zeros(seats, np.float32)
        self.scored = np.zeros(seats, np.int32)  # prompt tokens whose log-probability has been asked for
        self.request: list[Request | None] = [None] * seats
        self.history: list[History | None] = [None] * seats
        self.bias: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = [_bias({}, ())] * seats  # ids, values
        self.chain: list[list[bytes]] = [[] for _ in range(seats)]  # digests of its full blocks, as far as known

    @property
    def vacant(self) -> int:
        return len(self._free)

    def sit(self, request: Request, chain: list[bytes], arrival: int, limit: int) -> int:
        """Takes a seat for `request`, with no block yet; it ends at `limit` tokens if nothing ends it before."""
        seat = self._free.pop()
        sampling = request.sampling
        prompt = len(request.prompt)
        self.tokens[seat, :prompt] = request.prompt
        self.integers[:, seat] = (prompt, 0, -1, -1, prompt, max(sampling.top_k, 0), sampling.top_logprobs)
        self.floats[:, seat] = (
            sampling.temperature if sampling.temperature >= GREEDY_BELOW else 0,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        self.seed[seat] = random.getrandbits(64) if sampling.seed is None else sampling.seed & SEED_MASK
        self.blocks_held[seat] = 0
        self.limit[seat] = limit
        stops = (() if sampling.ignore_eos else self._eos_ids) + sampling.stop_token_ids
        self._set_stops(seat, stops)
        self.banned_until[seat] = prompt + sampling.min_tokens if sampling.min_tokens else 0
        self.bias[seat] = _bias(sampling.logit_bias, stops if sampling.min_tokens else ())
        self.needs[seat] = (
            NEEDS_HISTORY * sampling.penalized
            | NEEDS_BIAS * bool(sampling.logit_bias or sampling.min_tokens)
            | NEEDS_LOGPROBS * (sampling.top_logprobs >= 0)
            | NEEDS_FILTER * (request.filter is not None)
        )
        self.request_id[seat] = request.request_id
        self.arrival[seat] = arrival
        self.scored[seat] = 0
        self.chain[seat] = chain
        self.request[seat] = request
        self.history[seat] = _history(request) if sampling.penalized else None
        return seat

    def note_start(self, seat: int, cached_blocks: int, queue_seconds: float) -> None:
        """What the client is told with the first token."""
        self.cached_tokens[seat] = cached_blocks * BLOCK_TOKENS
        self.queue_seconds[seat] = queue_seconds

    def leave(self, seat: int) -> None:
        self.departures += 1
        self.request_id[seat] = self.arrival[seat] = -1
        self.request[seat] = None
        self.history[seat] = None
        self.chain[seat] = []
        self._free.append(seat)

    def request_of(self, seat: int) -> Request:
        request = self.request[seat]
        assert request is not None, f"seat {seat} is vacant"
        return request

    def blocks_of(self, seat: int) -> npt.NDArray[np.int32]:
        """A view of the blocks it holds, in order."""
        held: npt.NDArray[np.int32] = self.block_tables[seat, : self.blocks_held[seat]]
        return held

    def hold(self, seat: int, blocks: npt.NDArray[np.int32]) -> None:
        """Appends blocks to a sequence's table."""
        held = int(self.blocks_held[seat])
        self.block_tables[seat, held : held + len(blocks)] = blocks
        self.blocks_held[seat] = held + len(blocks)

    def lift_bans(self, seats: Seats, lengths: npt.NDArray[np.int32]) -> None:
        """Lets those of these sequences end that have drawn their min_tokens when they are `lengths` long."""
        banned_until = self.banned_until[seats]
        for seat in seats[(banned_until > 0) & (lengths >= banned_until)].tolist():
            self.banned_until[seat] = 0
            self.bias[seat] = _bias(self.request_of(seat).sampling.logit_bias, ())

    def _set_stops(self, seat: int, stops: tuple[int, ...]) -> None:
        width = self.stops.shape[1]
        if len(stops) > width:
            self.stops = np.pad(self.stops, ((0, 0), (0, len(stops) - width)), constant_values=-1)
        self.stops[seat] = -1
        self.stops[seat, : len(stops)] = stops


def _history(request: Request) -> History:
    sampling = request.sampling
    if sampling.last_prompt_token_counts:
        history = History(request.prompt[:0])
        history.append(int(request.prompt[-1]))
        return history
    # Only the repetition penalty heeds the prompt.
    return History(request.prompt if sampling.repetition_penalty != 1 else request.prompt[:0])


def _bias(bias: dict[int, float], banned: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(ids, values) to add to the logits; a banned token gets -inf."""
    values = [*bias.values(), *[-np.inf] * len(banned)]
    return np.array([*bias, *banned], np.int32), np.array(values, np.float32)


def _lazy_int32s(rows: int, cols: int) -> npt.NDArray[np.int32]:
    """Zeroed int32 [rows, cols] that takes memory page by page as it is written, and never a huge page for one row."""
    memory = mmap.mmap(-1, rows * cols * 4)
    with contextlib.suppress(OSError):  # a kernel built without huge pages knows no such advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int32).reshape(rows, cols)
