"""The task in a payload, and the fields that tell a body from OpenAI's. Runs in the server processes."""

from typing import Any

import msgspec

from oarlock_runtime.server.json_document import CrowdedError, decode
from oarlock_runtime.server.paddle.failure import MALFORMED, REJECTED, PaddleError, unexpected

Task = dict[str, Any]  # one request's fields; a null is dropped, since it means absent

# Fields that OpenAI's bodies don't have: one of them makes a body private.
PRIVATE_FIELDS = frozenset(
    {
        "text",
        "input_ids",
        "req_id",
        "system",
        "max_dec_len",
        "seq_len",
        "min_dec_len",
        "topp",
        "penalty_score",
        "frequency_score",
        "presence_score",
        "stop_sequences",
        "stop_seqs",
        "eos_token_ids",
        "infer_seed",
        "enable_text_truncate",
        "response_type",
        "return_all_tokens",
        "return_usage",
        "timeout",
        "benchmark",
    }
)


def task_of_body(document: Any) -> Task:
    """The task of an HTTP body; PaddleError when it is no object."""
    if not isinstance(document, dict):
        raise PaddleError(MALFORMED, "request body is not a valid json format")
    return _without_nulls(document)


def task_of_payload(payload: bytes) -> Task:
    """The task of a gRPC payload, which is a list of one object; PaddleError for anything else."""
    try:
        document = decode(payload)
    except CrowdedError as error:
        raise unexpected(f"the payload is not taken: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unexpected(f"the payload is not valid JSON: {error}") from None
    if not isinstance(document, list):
        raise unexpected("the payload must be a list of one object")
    if len(document) != 1 or not document[0]:
        raise PaddleError(REJECTED, f"request data should not be empty and query num {len(document)} should be 1")
    if not isinstance(document[0], dict):
        raise unexpected("the payload must be a list of one object")
    return _without_nulls(document[0])


def name_of(document: Any) -> str | int | None:
    """The req_id that an error is reported under, whatever else is wrong; None without a usable one."""
    name = document.get("req_id") if isinstance(document, dict) else None
    return name if isinstance(name, str | int) else None


def _without_nulls(document: dict[str, Any]) -> Task:
    return {name: value for name, value in document.items() if value is not None}
