"""Messages on a socket: however its bytes are cut, the same come out; what is kept for a slow reader is sent."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oarlock_runtime.ipc.framing import FrameReader, framed
from oarlock_runtime.ipc.peer import Peer


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 30), min_size=1))
def test_frames_survive_any_cut(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(framed, messages))
    reader = FrameReader()
    found, at = [], 0
    for turn in range(len(data)):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[at : at + size])
        at += size
        if at >= len(data):
            break
    assert found == messages


def test_what_claims_to_be_huge_is_no_frame() -> None:
    with pytest.raises(ValueError, match="4294967295 bytes"):
        FrameReader().feed(b"\xff\xff\xff\xff1")


def test_a_peer_keeps_what_there_is_no_room_for() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer, reader = Peer(here), FrameReader()
        messages = [bytes([number]) * 100_000 for number in range(40)]
        for message in messages:
            peer.send(message)
        assert peer.unsent > 0
        there.settimeout(5)
        found: list[bytes] = []
        while len(found) < len(messages):
            found += reader.feed(there.recv(1 << 16))
            peer.flush()
        assert found == messages and peer.unsent == 0


def test_a_peer_that_is_given_up_gets_whole_frames() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer, reader = Peer(here), FrameReader()
        for _ in range(40):
            peer.send(b"x" * 100_000)
        peer.forget_unsent()
        peer.send(b"last")
        there.settimeout(5)
        found: list[bytes] = []
        while not found or found[-1] != b"last":
            found += reader.feed(there.recv(1 << 16))
            peer.flush()
        assert 1 < len(found) < 40 and set(found[:-1]) == {b"x" * 100_000}


def test_a_peer_tells_when_the_other_end_is_gone_or_no_peer() -> None:
    here, there = socket.socketpair()
    with here:
        peer = Peer(here)
        assert peer.receive() == []
        there.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(ConnectionError, match="a frame of"):
            peer.receive()
        there.close()
        with pytest.raises(ConnectionError):
            peer.receive()
        with pytest.raises(ConnectionError):
            peer.send(b"x")
