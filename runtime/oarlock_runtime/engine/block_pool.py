"""The KV pool's bookkeeping: which 64-token blocks are free, shared or reusable. Engine process; no memory is touched.

A block is *held* (its reference count says by how many sequences), *idle* (nobody holds it, but it keeps a known prefix
for reuse; evicted least recently used first) or *blank*. A full block is known by the digest of its tokens chained to
the digest of everything before it, so that equal digests mean equal keys and values.
"""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.plan import BLOCK_TOKENS

Blocks = npt.NDArray[np.int32]


class BlockPool:
    """`blocks` blocks, all blank. Operations cost O(blocks named in the call), whatever the size of the pool."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._blank = np.arange(blocks - 1, -1, -1, dtype=np.int32)  # a stack: the top is at _blank_count - 1
        self._blank_count = blocks
        self._idle: OrderedDict[int, bytes] = OrderedDict()  # block to digest, least recently used first
        self._references = np.zeros(blocks, np.int32)
        self._digests: list[bytes | None] = [None] * blocks
        self._known = np.zeros(blocks, np.bool_)  # whether _digests has one
        self._block_of: dict[bytes, int] = {}
        self._secret = secrets.token_bytes(16)  # so that no client can look for two prompts of one digest

    @property
    def available(self) -> int:
        """Blocks that allocate can give out."""
        return self._blank_count + len(self._idle)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def allocate(self, count: int) -> Blocks:
        """`count` blocks, each referenced once; at most `available`."""
        if count > self.available:
            raise ValueError(f"{count} blocks wanted where {self.available} are available")
        for _ in range(count - self._blank_count):
            block, digest = self._idle.popitem(last=False)
            del self._block_of[digest]
            self._blank_again(block)
        self._blank_count -= count
        taken = self._blank[self._blank_count : self._blank_count + count].copy()
        self._references[taken] = 1
        return taken

    def release(self, blocks: Blocks, forget: bool = False) -> None:
        """Gives back one reference to each of a sequence's blocks, in the sequence's order.

        forget: their content is not to be trusted, so that those nobody else holds are not kept for reuse.
        """
        self._references[blocks] -= 1
        loose = blocks[self._references[blocks] == 0]
        known = self._known[loose]
        if forget:
            for block in loose[known].tolist():
                del self._block_of[self._take_digest(block)]
            known = np.zeros_like(known)
        blank = loose[~known]
        self._blank[self._blank_count : self._blank_count + len(blank)] = blank
        self._blank_count += len(blank)
        for block in loose[known].tolist()[::-1]:  # the end of a prompt is of less use than its beginning
            digest = self._digests[block]
            assert digest is not None
            self._idle[block] = digest

    def first_digest(self, salt: str) -> bytes:
        """What the first block's digest is chained to."""
        return hashlib.blake2b(salt.encode(), digest_size=16, key=self._secret).digest()

    def digests(self, tokens: npt.NDArray[np.int32], parent: bytes) -> list[bytes]:
        """One digest for each full block of `tokens`, which follow what `parent` stands for."""
        chain = []
        for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
            parent = hashlib.blake2b(tokens[end - BLOCK_TOKENS : end].tobytes(), digest_size=16, key=parent).digest()
            chain.append(parent)
        return chain

    def match(self, chain: Sequence[bytes]) -> tuple[int, int]:
        """How many blocks, from the first, are there to be shared; and how many of them are idle."""
        hit = idle = 0
        for digest in chain:
            block = self._block_of.get(digest)
            if block is None:
                break
            hit += 1
            idle += block in self._idle
        return hit, idle

    def acquire(self, chain: Sequence[bytes]) -> Blocks:
        """The blocks of a matched chain, each referenced once more."""
        blocks = np.array([self._block_of[digest] for digest in chain], np.int32)
        for block in blocks[self._references[blocks] == 0].tolist():
            del self._idle[block]
        self._references[blocks] += 1
        return blocks

    def publish(self, block: int, digest: bytes) -> None:
        """From now on the held block may be shared under this digest, unless another block already is."""
        if digest not in self._block_of and not self._known[block]:
            self._block_of[digest] = block
            self._digests[block] = digest
            self._known[block] = True

    def _take_digest(self, block: int) -> bytes:
        digest = self._digests[block]
        assert digest is not None
        self._digests[block] = None
        self._known[block] = False
        return digest

    def _blank_again(self, block: int) -> None:
        self._take_digest(block)
        self._blank[self._blank_count] = block
        self._blank_count += 1
