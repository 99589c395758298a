"""Outputs survive the way into messages and back, and each client gets its own part."""

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oarlock_runtime.engine.output import PromptLogprobs, RequestFailure, Started, StepOutput, TokenLogprobs
from oarlock_runtime.ipc.messages import Tokens
from oarlock_runtime.ipc.packing import LOCAL_BITS, LOCAL_MASK, pack_output, split_output, unpack_output


@st.composite
def outputs(draw: st.DrawFn) -> StepOutput:
    owners = draw(st.lists(st.integers(0, 3), max_size=12))
    count = len(owners)
    random = np.random.default_rng(draw(st.integers(0, 9)))
    output = StepOutput(
        np.array([(owner << LOCAL_BITS) + place for place, owner in enumerate(owners)], np.int64),
        random.integers(-1, 100, count).astype(np.int32),
        random.integers(0, 5, count).astype(np.uint8),
    )
    some = np.flatnonzero(random.integers(0, 2, count)).astype(np.int32)
    if draw(st.booleans()):
        width = draw(st.integers(0, 3))
        output.logprobs = TokenLogprobs(
            some,
            random.random(len(some), np.float32),
            random.integers(0, 100, (len(some), width)).astype(np.int32),
            random.random((len(some), width), np.float32),
        )
    if draw(st.booleans()):
        output.started = Started(some, some * np.int32(64), random.random(len(some), np.float32))
    for owner in draw(st.lists(st.integers(0, 3), max_size=3)):
        output.prompt_logprobs.append(
            PromptLogprobs(
                (owner << LOCAL_BITS) + 99,
                5,
                random.random(2, np.float32),
                np.zeros((2, 1), np.int32),
                random.random((2, 1), np.float32),
            )
        )
    output.failures = [RequestFailure(int(request_id), "why") for request_id in output.request_ids[:1]]
    return output


def entries(output: StepOutput) -> dict[int, tuple[object, ...]]:
    """All that an output says of each of its requests."""
    facts: dict[int, list[object]] = {int(request_id): [] for request_id in output.request_ids}
    for request_id, token, finish in zip(output.request_ids, output.token_ids, output.finish, strict=True):
        facts[int(request_id)] += [int(token), int(finish)]
    if output.logprobs is not None:
        columns = output.logprobs
        for at, entry in enumerate(columns.entries):
            facts[int(output.request_ids[entry])] += [
                float(columns.logprobs[at]),
                columns.top_ids[at].tolist(),
                columns.top_logprobs[at].tolist(),
            ]
    if output.started is not None:
        for at, entry in enumerate(output.started.entries):
            facts[int(output.request_ids[entry])] += [
                int(output.started.cached_tokens[at]),
                float(output.started.queue_seconds[at]),
            ]
    for part in output.prompt_logprobs:
        facts.setdefault(part.request_id, []).extend(
            [part.start, part.logprobs.tolist(), part.top_ids.tolist(), part.top_logprobs.tolist()]
        )
    for failure in output.failures:
        facts[failure.request_id].append(failure.message)
    return {request_id: tuple(map(str, values)) for request_id, values in facts.items()}


@settings(deadline=None)
@given(outputs())
def test_each_client_gets_its_part_unchanged(output: StepOutput) -> None:
    arrived: dict[int, tuple[object, ...]] = {}
    for client, part in split_output(output):
        frame = msgspec.msgpack.encode(pack_output(part))
        received = unpack_output(msgspec.msgpack.decode(frame, type=Tokens))
        for request_id, facts in entries(received).items():
            assert request_id <= LOCAL_MASK
            arrived[(client << LOCAL_BITS) + request_id] = facts
    assert arrived == entries(output)
