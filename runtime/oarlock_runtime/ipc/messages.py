"""The messages between server processes and the engine process; this file is the boundary's documentation.

Each is one msgpack frame: an array whose first element is the message's tag. Columns of numbers travel as bytes in
native byte order (both ends are on one machine). Request ids are the client's own and below 2**40; EngineSocket makes
them unique among clients.
Server to engine: Hello, AddRequest, AbortRequests, Ping.
Engine to server: EngineReady, Accepted, Rejected, Tokens, Heartbeat, EngineFailed.
"""

import msgspec

from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.engine.stats import EngineStats


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """A server process is there; answered by EngineReady. Sent once, after connecting."""

    name: str
    pid: int


class AddRequest(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """Answered by Accepted or Rejected between two steps, then by Tokens until one says how the request ended."""

    request_id: int
    prompt: bytes  # int32[tokens]
    sampling: SamplingParams
    cache_salt: str = ""
    name: str = ""  # the client's own; refused while a request of the same name, of whatever server, has not ended


class AbortRequests(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """The clients of these requests are gone. Not answered; unknown or ended requests are passed over."""

    request_ids: list[int]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """The server process is alive. Sent every second."""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="ready"):
    """The engine has loaded its model: what it is, and the limits that servers check before they send."""

    pid: int
    model: str  # served name
    family: str
    vocab: int
    max_context: int  # tokens of prompt and answer together, also bounded by the KV pool
    max_sequences: int
    max_waiting: int
    blocks: int
    weight_bytes: int
    kv_bytes: int
    step_weight_bytes: int  # of weights that a decode step reads
    context: int  # tokens of a sequence, whatever the KV pool holds


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    """These requests wait or run now."""

    request_ids: list[int]


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag="rejected"):
    """The request was never taken: the fields of a RequestError."""

    request_id: int
    field: str
    message: str
    status: int
    code: str | None
    kind: str
    retry_after: int


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """engine.output.TokenLogprobs as bytes; `width` is K."""

    entries: bytes  # int32[m]
    logprobs: bytes  # float32[m]
    width: int
    top_ids: bytes  # int32[m, width]
    top_logprobs: bytes  # float32[m, width]


class PromptScores(msgspec.Struct, frozen=True, array_like=True):
    """engine.output.PromptLogprobs as bytes; `width` is K."""

    request_id: int
    start: int
    logprobs: bytes  # float32[m]
    width: int
    top_ids: bytes  # int32[m, width]
    top_logprobs: bytes  # float32[m, width]


class Starts(msgspec.Struct, frozen=True, array_like=True):
    """engine.output.Started as bytes."""

    entries: bytes  # int32[m]
    cached_tokens: bytes  # int32[m]
    queue_seconds: bytes  # float32[m]


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag="tokens"):
    """What one step gave to all requests of one server: engine.output.StepOutput as bytes."""

    request_ids: bytes  # int64[n]
    token_ids: bytes  # int32[n]; -1 = ended without a token
    finish: bytes  # uint8[n], engine.request.Finish
    logprobs: Logprobs | None = None
    starts: Starts | None = None
    prompt_scores: list[PromptScores] = []
    failures: list[tuple[int, str]] = []  # (request id, reason)


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag="heartbeat"):
    """The engine's loop came round. Sent twice a second, idle or not, but not in the middle of a step."""

    stats: EngineStats


class EngineFailed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The engine's last words."""

    reason: str


ToEngine = Hello | AddRequest | AbortRequests | Ping
ToServer = EngineReady | Accepted | Rejected | Tokens | Heartbeat | EngineFailed
