"""The block pool: what is handed out, shared, kept and evicted."""

import numpy as np
import pytest

from oarlock_runtime.engine.block_pool import BlockPool


def tokens(blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, blocks * 64).astype(np.int32)


def published(pool: BlockPool, ids: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Held blocks that hold `ids`."""
    chain = pool.digests(ids, pool.first_digest(""))
    blocks = pool.allocate(len(chain))
    for block, digest in zip(blocks.tolist(), chain, strict=True):
        pool.publish(block, digest)
    return blocks, chain


def test_blocks_are_given_out_once_and_come_back() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(3), pool.allocate(2)
    assert sorted([*first, *second]) == [0, 1, 2, 3, 4] and pool.available == 0
    with pytest.raises(ValueError, match="1 blocks wanted where 0"):
        pool.allocate(1)
    pool.release(first)
    assert pool.available == 3 and pool.idle == 0
    assert sorted(pool.allocate(3)) == sorted(first)


def test_a_digest_stands_for_all_tokens_up_to_it() -> None:
    pool, ids = BlockPool(1), tokens(3)
    chain = pool.digests(ids, pool.first_digest(""))
    assert len(set(chain)) == 3 and all(len(digest) == 16 for digest in chain)
    assert pool.digests(ids[:130], pool.first_digest("")) == chain[:2]
    assert pool.digests(ids[64:], chain[0]) == chain[1:]
    assert pool.digests(ids, pool.first_digest("salt"))[0] != chain[0]
    changed = ids.copy()
    changed[0] += 1
    assert not set(pool.digests(changed, pool.first_digest(""))) & set(chain)
    assert BlockPool(1).first_digest("") != pool.first_digest("")


def test_released_prefixes_are_found_again_until_they_are_evicted_oldest_first() -> None:
    pool = BlockPool(4)
    old, old_chain = published(pool, tokens(2, 1))
    new, new_chain = published(pool, tokens(2, 2))
    assert pool.match(old_chain) == (2, 0)
    pool.release(old)
    pool.release(new)
    assert (pool.available, pool.idle) == (4, 4)
    assert pool.match(old_chain) == (2, 2)
    pool.allocate(1)
    assert pool.match(old_chain) == (1, 1), "the end of a prefix goes before its beginning"
    assert pool.acquire(old_chain[:1]).tolist() == old[:1].tolist()
    assert pool.match(old_chain) == (1, 0)
    pool.allocate(2)
    assert pool.match(new_chain) == (0, 0) and pool.available == 0


def test_shared_blocks_come_back_when_the_last_holder_leaves() -> None:
    pool = BlockPool(2)
    blocks, chain = published(pool, tokens(2))
    again = pool.acquire(chain)
    pool.release(blocks)
    assert pool.available == 0
    pool.release(again)
    assert pool.available == 2


def test_a_second_block_of_the_same_content_is_not_kept() -> None:
    pool = BlockPool(2)
    first, chain = published(pool, tokens(1))
    second, _ = published(pool, tokens(1))
    pool.release(first)
    pool.release(second)
    assert pool.idle == 1 and pool.acquire(chain).tolist() == first.tolist()


def test_forgotten_blocks_are_not_found_again_unless_another_holds_them() -> None:
    pool = BlockPool(3)
    blocks, chain = published(pool, tokens(3))
    pool.acquire(chain[:1])
    pool.release(blocks, forget=True)
    assert pool.match(chain) == (1, 0)
    assert pool.available == 2 and pool.idle == 0
