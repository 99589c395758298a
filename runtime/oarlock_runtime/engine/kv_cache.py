"""Which blocks each sequence holds, and which it shares with others of the same prefix. Engine process.

A sequence's chain is the list of digests of its full blocks. A block is published, so that others may share it, in the
step that computes it: a layer writes the keys and values of all of a step's rows before any row reads them.
"""

from dataclasses import dataclass

import numpy as np

from oarlock_runtime.engine.block_pool import BlockPool
from oarlock_runtime.engine.plan import BLOCK_TOKENS
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sequences import Seats, Sequences

ROOM_BLOCKS = 2  # kept free for each running sequence that may still grow: 128 steps without a preemption


@dataclass(frozen=True, slots=True)
class Claim:
    """The blocks with which a sequence can start: `hit` shared ones, then `fresh` ones, and `room` for it to grow."""

    hit: int
    fresh: int
    room: int


class KvCache:
    """The block pool as sequences see it."""

    def __init__(self, blocks: int, sequences: Sequences, prefix_cache: bool) -> None:
        self.pool = BlockPool(blocks)
        self._sequences = sequences
        self._prefix_cache = prefix_cache
        self._computing: dict[bytes, int] = {}  # digests that a started sequence is going to publish, and its seat

    # ---- starting and leaving

    def prompt_chain(self, request: Request) -> list[bytes]:
        """Digests of the full blocks of a prompt; none when nothing is shared."""
        if not self._prefix_cache:
            return []
        return self.pool.digests(request.prompt, self.pool.first_digest(request.cache_salt))

    def match(self, request: Request, chain: list[bytes], length: int) -> tuple[int, int]:
        """Cached blocks to share, and how many of them are idle. The last token is never shared: it draws the next."""
        if request.sampling.prompt_logprobs >= 0:
            return 0, 0
        return self.pool.match(chain[: (length - 1) // BLOCK_TOKENS])

    def awaited(self, request: Request, chain: list[bytes]) -> bytes | None:
        """The digest of the first block that is not cached yet, if a running sequence is about to compute it."""
        hit, _ = self.match(request, chain, len(request.prompt))
        shareable = (len(request.prompt) - 1) // BLOCK_TOKENS
        if request.sampling.prompt_logprobs >= 0 or hit >= min(shareable, len(chain)):
            return None
        return chain[hit] if chain[hit] in self._computing else None

    def is_computing(self, digest: bytes | None) -> bool:
        return digest in self._computing

    def claim(self, request: Request, chain: list[bytes], length: int, limit: int, room: int) -> Claim | None:
        """What a sequence needs to be computed up to `length`; None if that leaves fewer than `room` blocks free."""
        hit, idle = self.match(request, chain, length)
        whole, final = -(-length // BLOCK_TOKENS), -(-(limit - 1) // BLOCK_TOKENS)  # the last token is never cached
        own_room = min(final - whole, ROOM_BLOCKS)
        if whole - hit + idle + own_room + room > self.pool.available:
            return None
        return Claim(hit, whole - hit, own_room)

    def room_wanted(self, seats: Seats) -> int:
        """Blocks to keep free for running sequences."""
        s = self._sequences
        final = (s.limit[seats] + (BLOCK_TOKENS - 2)) // BLOCK_TOKENS
        return int(np.clip(final - s.blocks_held[seats], 0, ROOM_BLOCKS).sum())

    def start(self, seat: int, claim: Claim) -> None:
        """Gives a sequence its claimed blocks."""
        s = self._sequences
        chain = s.chain[seat]
        s.hold(seat, self.pool.acquire(chain[: claim.hit]))
        s.hold(seat, self.pool.allocate(claim.fresh))
        s.computed[seat] = claim.hit * BLOCK_TOKENS
        for digest in chain[claim.hit :]:
            self._computing.setdefault(digest, seat)

    def give_back(self, seat: int, forget: bool = False) -> None:
        """Takes a sequence's blocks; forget: what they hold is not to be reused."""
        s = self._sequences
        for digest in s.chain[seat][s.computed[seat] // BLOCK_TOKENS :]:
            if self._computing.get(digest) == seat:
                del self._computing[digest]
        self.pool.release(s.blocks_of(seat), forget)
        s.blocks_held[seat] = 0
        s.computed[seat] = 0

    # ---- growing

    def without_block(self, decoding: Seats) -> Seats:
        """Those whose next token has no block."""
        s = self._sequences
        needy: Seats = decoding[s.computed[decoding] == s.blocks_held[decoding] * BLOCK_TOKENS]
        return needy

    def append_block(self, seats: Seats) -> None:
        """One more block for each."""
        s = self._sequences
        s.block_tables[seats, s.blocks_held[seats]] = self.pool.allocate(len(seats))
        s.blocks_held[seats] += 1

    # ---- sharing

    def complete_chain(self, seat: int) -> None:
        """Digests of the full blocks of all tokens that a sequence has by now."""
        s = self._sequences
        if self._prefix_cache:
            chain = s.chain[seat]
            parent = chain[-1] if chain else self.pool.first_digest(s.request_of(seat).cache_salt)
            chain += self.pool.digests(s.tokens[seat, len(chain) * BLOCK_TOKENS : s.length[seat]], parent)

    def publish(self, seat: int, start: int, end: int) -> None:
        """The blocks that are full once the tokens start .. end are computed may be shared."""
        s = self._sequences
        for index in range(start // BLOCK_TOKENS, min(end // BLOCK_TOKENS, len(s.chain[seat]))):
            digest = s.chain[seat][index]
            self.pool.publish(int(s.block_tables[seat, index]), digest)
            self._computing.pop(digest, None)

    def publish_decoded(self, seat: int, cached: int) -> None:
        """The block that the token before `cached` has filled may be shared."""
        if self._prefix_cache:
            self.complete_chain(seat)
            self.publish(seat, cached - BLOCK_TOKENS, cached)
