"""How the ranks of a split model find each other: each tells rank 0 who it is, and rank 0 tells all of them everybody.

Runs in the process of every rank before the model loads. A rank of another epoch, or one that would run another model
or run it otherwise, is refused with a message on both sides; nobody waits longer than the limit, and everybody who came
learns who did not. A rank that can't take part, as its model can't be opened, says so instead, and nobody waits for it.
Rank 0 listens at one address; messages are JSON over ZeroMQ.
"""

import base64
import logging
import time
from dataclasses import dataclass, field

import msgspec
import zmq

from oarlock_runtime.errors import OarlockError

LOG = logging.getLogger(__name__)
_VERDICT_SECONDS = 5.0  # beyond the limit, for rank 0 to say who is missing
_EXCUSE_SECONDS = 5.0  # that a rank which can't take part stays to say so
_ASK_SECONDS = 1.0  # between two tries of a rank that has no answer
_LINGER_MILLISECONDS = 3000  # for the last answers to leave
_LONGEST_MESSAGE = 1 << 20
_MOST_WAITING = 1024  # messages


class FormationError(OarlockError):
    """The ranks did not come together."""


class Join(msgspec.Struct, tag="join"):
    """A rank's word to rank 0. `facts` must be the same on all ranks: the model, and how it is run."""

    rank: int
    world: int
    epoch: str
    name: str  # what errors call it
    facts: dict[str, str]
    address: str  # of its communicator, base64


class Excuse(msgspec.Struct, tag="excuse"):
    """A rank's word to rank 0 that it can't take part."""

    rank: int
    epoch: str
    name: str
    reason: str


class Formed(msgspec.Struct, tag="formed"):
    """Rank 0's answer once all have come; by rank."""

    names: list[str]
    addresses: list[str]


class Refused(msgspec.Struct, tag="refused"):
    """Rank 0's answer to a stranger, or to all when the ranks can't come together."""

    reason: str


@dataclass(frozen=True, slots=True)
class Member:
    """What a rank knows before it meets the others. One that can't take part may have no facts and no address."""

    rank: int
    world: int
    epoch: str
    name: str
    store: str  # HOST:PORT where rank 0 listens
    facts: dict[str, str] = field(default_factory=dict)
    address: bytes = b""


@dataclass(frozen=True, slots=True)
class Roster:
    """Everybody, by rank."""

    names: list[str]
    addresses: list[bytes] = field(repr=False)


def form(member: Member, seconds: float) -> Roster:
    """Meets the other ranks; FormationError says who never came, who was refused and why, or what was unreachable."""
    with _socket(member) as socket:
        deadline = time.monotonic() + seconds
        formed = (
            _gather(socket, member, deadline, seconds)
            if member.rank == 0
            else _join(socket, member, deadline + _VERDICT_SECONDS)
        )
    return Roster(formed.names, [base64.b64decode(address) for address in formed.addresses])


def excuse(member: Member, reason: str, seconds: float = _EXCUSE_SECONDS) -> None:
    """Tells the other ranks that this one can't take part, if they come to hear it within `seconds`."""
    with _socket(member) as socket:
        deadline = time.monotonic() + seconds
        if member.rank == 0:
            _refuse_all(socket, member, f"rank 0 ({member.name}) can't take part: {reason}", deadline)
        else:
            word = msgspec.json.encode(Excuse(member.rank, member.epoch, member.name, reason))
            socket.connect(f"tcp://{member.store}")
            _ask(socket, word, deadline)


def _socket(member: Member) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = context.socket(zmq.ROUTER if member.rank == 0 else zmq.DEALER)
    socket.setsockopt(zmq.LINGER, _LINGER_MILLISECONDS)
    socket.setsockopt(zmq.MAXMSGSIZE, _LONGEST_MESSAGE)
    socket.setsockopt(zmq.RCVHWM, _MOST_WAITING)
    socket.setsockopt(zmq.SNDHWM, _MOST_WAITING)
    if ":" in member.store.rpartition(":")[0]:
        socket.setsockopt(zmq.IPV6, 1)
    return socket


def _ask(socket: zmq.Socket[bytes], word: bytes, deadline: float) -> bytes | None:
    """Says the word to rank 0 again and again until there is an answer."""
    while (left := deadline - time.monotonic()) > 0:
        if socket.poll(0, zmq.POLLOUT):
            socket.send(word, zmq.NOBLOCK)
        if socket.poll(int(min(left, _ASK_SECONDS) * 1000)):
            return socket.recv()
    return None


def _join_of(member: Member) -> Join:
    address = base64.b64encode(member.address).decode()
    return Join(member.rank, member.world, member.epoch, member.name, member.facts, address)


def _join(socket: zmq.Socket[bytes], member: Member, deadline: float) -> Formed:
    socket.connect(f"tcp://{member.store}")
    started = time.monotonic()
    word = _ask(socket, msgspec.json.encode(_join_of(member)), deadline)
    if word is not None:
        try:
            answer = msgspec.json.decode(word, type=Formed | Refused)
        except msgspec.DecodeError as error:
            raise FormationError(f"what answers at {member.store} is no rank 0: {error}") from error
        if isinstance(answer, Refused):
            raise FormationError(f"rank {member.rank} ({member.name}) was refused by rank 0: {answer.reason}")
        return answer
    waited = time.monotonic() - started
    raise FormationError(
        f"rank {member.rank} ({member.name}) had no answer from rank 0 at {member.store} in {waited:.0f} s: "
        "is it running, and can it be reached from here?"
    )


def _listen(socket: zmq.Socket[bytes], member: Member) -> None:
    try:
        socket.bind(f"tcp://{member.store}")
    except zmq.ZMQError as error:
        raise FormationError(f"rank 0 can't listen at {member.store}: {error.strerror or error}") from error


def _receive(socket: zmq.Socket[bytes], member: Member) -> tuple[bytes, Join | Excuse | None]:
    """Who sent a message, and what it says; None where that is nothing of a rank's."""
    identity, *frames = socket.recv_multipart()
    try:
        return identity, msgspec.json.decode(frames[0] if frames else b"", type=Join | Excuse)
    except msgspec.DecodeError:
        LOG.warning("a stranger at %s sent what is no message of a rank", member.store)
        return identity, None


def _refuse_all(socket: zmq.Socket[bytes], member: Member, reason: str, deadline: float) -> None:
    """Until every other rank has been told, or the deadline."""
    _listen(socket, member)
    told: set[int] = set()
    while len(told) < member.world - 1 and (left := deadline - time.monotonic()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            continue
        identity, word = _receive(socket, member)
        if word is not None and word.epoch == member.epoch and 0 < word.rank < member.world:
            socket.send_multipart([identity, msgspec.json.encode(Refused(reason))])
            told.add(word.rank)


def _gather(socket: zmq.Socket[bytes], member: Member, deadline: float, seconds: float) -> Formed:
    _listen(socket, member)
    mine = _join_of(member)
    came: dict[int, tuple[bytes, Join]] = {0: (b"", mine)}

    def tell_all(answer: Formed | Refused) -> None:
        for identity, _ in came.values():
            if identity:
                socket.send_multipart([identity, msgspec.json.encode(answer)])

    while len(came) < member.world:
        left = deadline - time.monotonic()
        if left <= 0 or not socket.poll(int(left * 1000) + 1):
            absent = ", ".join(f"rank {rank}" for rank in range(member.world) if rank not in came)
            present = ", ".join(f"rank {rank} ({join.name})" for rank, (_, join) in sorted(came.items()))
            reason = f"{absent} never came within {seconds:.0f} s; there were {present}"
            tell_all(Refused(reason))
            raise FormationError(reason)
        identity, join = _receive(socket, member)
        if join is None:
            continue
        if isinstance(join, Excuse):
            if join.epoch == mine.epoch and 0 < join.rank < mine.world:
                came.pop(join.rank, None)
                reason = f"rank {join.rank} ({join.name}) can't take part: {join.reason}"
                socket.send_multipart([identity, msgspec.json.encode(Refused(reason))])
                tell_all(Refused(reason))
                raise FormationError(reason)
            continue
        reason, fatal = _objection(mine, join)
        if reason:
            LOG.warning("refused %s: %s", join.name, reason)
            socket.send_multipart([identity, msgspec.json.encode(Refused(reason))])
            if fatal:
                tell_all(Refused(reason))
                raise FormationError(reason)
            continue
        # A rank that started again takes the place of what it was; if that is still there, two claim the same.
        before, _ = came.get(join.rank, (identity, join))
        if before != identity:
            again = Refused(f"another process, {join.name}, has come as rank {join.rank}")
            socket.send_multipart([before, msgspec.json.encode(again)])
        came[join.rank] = (identity, join)
    joins = [came[rank][1] for rank in range(member.world)]
    formed = Formed([join.name for join in joins], [join.address for join in joins])
    tell_all(formed)
    return formed


def _objection(mine: Join, join: Join) -> tuple[str, bool]:
    """Why a rank is refused, "" if it isn't, and whether no other could take its place."""
    if join.epoch != mine.epoch:
        return (
            f"{join.name} is of epoch {join.epoch or '(none)'}, this group is of epoch {mine.epoch or '(none)'}",
            False,
        )
    if join.world != mine.world:
        return f"{join.name} counts {join.world} ranks, rank 0 counts {mine.world}", True
    if not 0 < join.rank < mine.world:
        return f"{join.name} calls itself rank {join.rank}; the ranks are 0 to {mine.world - 1}, and 0 is here", True
    for name, value in mine.facts.items():
        if join.facts.get(name) != value:
            other = join.facts.get(name, "(unknown)")
            return f"rank {join.rank} ({join.name}) has {name} {other}, rank 0 has {value}", True
    return "", False
