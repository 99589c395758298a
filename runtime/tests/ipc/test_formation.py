"""Ranks meeting over loopback: any order, and everything that can keep them apart."""

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import zmq
from support.served import free_ports

from oarlock_runtime.ipc.formation import FormationError, Member, Roster, excuse, form

FACTS = {"model": "abc", "dtype": "bf16"}


def members(world: int) -> list[Member]:
    store = f"127.0.0.1:{free_ports(1)[0]}"
    return [Member(rank, world, "7", f"host-{rank}", store, FACTS, f"at {rank}".encode()) for rank in range(world)]


def meet(them: list[Member], seconds: float = 10.0) -> list[Roster | FormationError]:
    """What each gets, in their order; they start in that order too."""

    def one(member: Member) -> Roster | FormationError:
        try:
            return form(member, seconds)
        except FormationError as error:
            return error

    with ThreadPoolExecutor(len(them)) as pool:
        return list(pool.map(one, them))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_ranks_meet_in_any_order(order: list[int]) -> None:
    all_members = members(3)
    expected = Roster(["host-0", "host-1", "host-2"], [b"at 0", b"at 1", b"at 2"])
    assert meet([all_members[rank] for rank in order]) == [expected] * 3


def test_who_never_came_is_named_to_all() -> None:
    found = meet(members(3)[:2], seconds=1.5)
    assert [str(error) for error in found] == [
        "rank 2 never came within 2 s; there were rank 0 (host-0), rank 1 (host-1)",
        "rank 1 (host-1) was refused by rank 0: "
        "rank 2 never came within 2 s; there were rank 0 (host-0), rank 1 (host-1)",
    ]


def test_an_absent_rank_0_is_named() -> None:
    (error,) = meet(members(2)[1:], seconds=1.2)
    assert "rank 1 (host-1) had no answer from rank 0 at 127.0.0.1:" in str(error)


def test_a_stranger_of_another_epoch_is_refused_and_the_group_forms() -> None:
    first, second = members(2)
    found = meet([first, replace(second, epoch="6", name="stranger")], seconds=2)
    assert "stranger is of epoch 6, this group is of epoch 7" in str(found[1])
    assert "rank 1 never came" in str(found[0])
    first, second = members(2)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(form, first, 20)
        with pytest.raises(FormationError, match=r"is of epoch \(none\), this group is of epoch 7"):
            form(replace(second, epoch=""), 10)
        assert form(second, 10) == leader.result()


def test_another_model_is_refused_on_both_sides() -> None:
    first, second = members(2)
    found = meet([first, replace(second, facts=FACTS | {"model": "xyz"})])
    assert str(found[0]) == "rank 1 (host-1) has model xyz, rank 0 has abc"
    assert str(found[1]) == "rank 1 (host-1) was refused by rank 0: rank 1 (host-1) has model xyz, rank 0 has abc"


def test_other_counts_of_ranks_are_refused() -> None:
    first, second = members(2)
    found = meet([first, replace(second, world=3)])
    assert "host-1 counts 3 ranks, rank 0 counts 2" in str(found[0])


@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_that_cannot_take_part_keeps_nobody_waiting(absent: int) -> None:
    them = members(3)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(form, member, 60) for member in them if member.rank != absent]
        excuse(them[absent], "no model at /models/none")
        for future in waiting:
            with pytest.raises(FormationError, match=rf"rank {absent} \(host-{absent}\) can't take part: no model at"):
                future.result(20)


def test_an_excuse_that_nobody_hears_is_given_up() -> None:
    for member in members(2):
        excuse(member, "no model", 0.2)


def test_a_stranger_excuses_nobody() -> None:
    them = members(2)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(form, them[0], 20)
        excuse(replace(them[1], epoch="6"), "no model", 1.5)
        assert form(them[1], 20) == waiting.result(20)


def test_noise_at_the_port_harms_nobody() -> None:
    first, second = members(2)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(form, first, 10)
        with zmq.Context.instance().socket(zmq.DEALER) as noise:
            noise.setsockopt(zmq.LINGER, 0)
            noise.connect(f"tcp://{first.store}")
            for junk in (b"", b"{}", b"\xff" * 1000, b'{"type":"join","rank":"one"}'):
                noise.send(junk)
            assert form(second, 10) == leader.result()


def test_of_two_that_claim_a_rank_one_is_told() -> None:
    first, second, third = members(3)
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(form, first, 60)
        claims = [pool.submit(form, replace(second, name=name), 60) for name in ("one", "other")]
        (told,), (kept,) = wait(claims, return_when=FIRST_COMPLETED)
        with pytest.raises(FormationError, match=r"another process, (one|other), has come as rank 1"):
            told.result()
        assert form(third, 60) == leader.result() == kept.result()


def test_what_is_no_rank_0_is_named() -> None:
    second = members(2)[1]
    with zmq.Context.instance().socket(zmq.ROUTER) as stranger, ThreadPoolExecutor(1) as pool:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.RCVTIMEO, 10_000)
        stranger.bind(f"tcp://{second.store}")
        asked = pool.submit(form, second, 10)
        identity, _ = stranger.recv_multipart()
        stranger.send_multipart([identity, b"hello"])
        with pytest.raises(FormationError, match=r"what answers at 127\.0\.0\.1:.* is no rank 0"):
            asked.result()


def test_a_busy_port_is_named() -> None:
    first = members(2)[0]
    with zmq.Context.instance().socket(zmq.ROUTER) as taken:
        taken.bind(f"tcp://{first.store}")
        with pytest.raises(FormationError, match=r"rank 0 can't listen at 127\.0\.0\.1:.*in use"):
            form(first, 2)
