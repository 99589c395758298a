"""Between the engine's arrays and the bytes in messages. Both ends use it; nothing here is per token."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from oarlock_runtime.engine.output import PromptLogprobs, RequestFailure, Started, StepOutput, TokenLogprobs
from oarlock_runtime.ipc.messages import Logprobs, PromptScores, Starts, Tokens

_Number = TypeVar("_Number", bound=np.generic)

LOCAL_BITS = 40  # of a request id are the client's own; those above name the client
LOCAL_MASK = (1 << LOCAL_BITS) - 1


def split_output(output: StepOutput) -> Iterator[tuple[int, StepOutput]]:
    """(client, its part of the output) for each client with anything in it."""
    owners = output.request_ids >> LOCAL_BITS
    if len(owners) and not output.prompt_logprobs and (owners == owners[0]).all():
        yield int(owners[0]), output
        return
    clients = set(np.unique(owners).tolist())
    clients.update(part.request_id >> LOCAL_BITS for part in output.prompt_logprobs)
    for client in sorted(clients):
        yield client, _select(output, owners == client, client)


def _select(output: StepOutput, chosen: npt.NDArray[np.bool_], client: int) -> StepOutput:
    places = np.cumsum(chosen, dtype=np.int32) - np.int32(1)  # where an entry ends up
    part = StepOutput(output.request_ids[chosen], output.token_ids[chosen], output.finish[chosen])
    if output.logprobs is not None:
        logprobs, kept = output.logprobs, chosen[output.logprobs.entries]
        part.logprobs = TokenLogprobs(
            places[logprobs.entries[kept]], logprobs.logprobs[kept], logprobs.top_ids[kept], logprobs.top_logprobs[kept]
        )
    if output.started is not None:
        started, kept = output.started, chosen[output.started.entries]
        part.started = Started(places[started.entries[kept]], started.cached_tokens[kept], started.queue_seconds[kept])
    part.prompt_logprobs = [p for p in output.prompt_logprobs if p.request_id >> LOCAL_BITS == client]
    part.failures = [f for f in output.failures if f.request_id >> LOCAL_BITS == client]
    return part


def pack_output(output: StepOutput) -> Tokens:
    """The message for one client, whose request ids become its own again."""
    return Tokens(
        (output.request_ids & LOCAL_MASK).tobytes(),
        output.token_ids.tobytes(),
        output.finish.tobytes(),
        None if output.logprobs is None else _pack_logprobs(output.logprobs),
        None if output.started is None else _pack_started(output.started),
        [_pack_prompt_logprobs(part) for part in output.prompt_logprobs],
        [(failure.request_id & LOCAL_MASK, failure.message) for failure in output.failures],
    )


def _pack_logprobs(columns: TokenLogprobs) -> Logprobs:
    return Logprobs(
        columns.entries.tobytes(),
        columns.logprobs.tobytes(),
        columns.top_ids.shape[1],
        columns.top_ids.tobytes(),
        columns.top_logprobs.tobytes(),
    )


def _pack_started(columns: Started) -> Starts:
    return Starts(columns.entries.tobytes(), columns.cached_tokens.tobytes(), columns.queue_seconds.tobytes())


def _pack_prompt_logprobs(part: PromptLogprobs) -> PromptScores:
    return PromptScores(
        part.request_id & LOCAL_MASK,
        part.start,
        part.logprobs.tobytes(),
        part.top_ids.shape[1],
        part.top_ids.tobytes(),
        part.top_logprobs.tobytes(),
    )


def unpack_output(message: Tokens) -> StepOutput:
    """The inverse of pack_output; arrays are read-only views of the message."""
    output = StepOutput(
        np.frombuffer(message.request_ids, np.int64),
        np.frombuffer(message.token_ids, np.int32),
        np.frombuffer(message.finish, np.uint8),
    )
    if message.logprobs is not None:
        packed = message.logprobs
        output.logprobs = TokenLogprobs(
            np.frombuffer(packed.entries, np.int32),
            np.frombuffer(packed.logprobs, np.float32),
            _table(packed.top_ids, np.int32, packed.logprobs, packed.width),
            _table(packed.top_logprobs, np.float32, packed.logprobs, packed.width),
        )
    if message.starts is not None:
        output.started = Started(
            np.frombuffer(message.starts.entries, np.int32),
            np.frombuffer(message.starts.cached_tokens, np.int32),
            np.frombuffer(message.starts.queue_seconds, np.float32),
        )
    output.prompt_logprobs = [
        PromptLogprobs(
            part.request_id,
            part.start,
            np.frombuffer(part.logprobs, np.float32),
            _table(part.top_ids, np.int32, part.logprobs, part.width),
            _table(part.top_logprobs, np.float32, part.logprobs, part.width),
        )
        for part in message.prompt_scores
    ]
    output.failures = [RequestFailure(request_id, reason) for request_id, reason in message.failures]
    return output


def _table(data: bytes, dtype: type[_Number], rows: bytes, width: int) -> npt.NDArray[_Number]:
    """[m, width] for the m four-byte entries of `rows`."""
    return np.frombuffer(data, dtype).reshape(len(rows) // 4, width)
