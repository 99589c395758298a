"""How the private dialect refuses: a number for who refused, and PaddleNLP's words. Runs in the server processes."""

import time
from typing import Any

from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.client import EngineDead

REJECTED = 200  # the request is wrong, or can't be taken now
MALFORMED = 400  # the body is no JSON object
BACKEND = 500  # the engine failed, is still loading or is gone
HANDLER = 501  # time ran out, or the server failed on the request

_FORMAT = "4.6"  # of error objects, as PaddleNLP numbers it
_UNEXPECTED = "Unexcepted promblem happened while insert new task to server task queue: "  # spelled as PaddleNLP does


class PaddleError(Exception):
    """One request can't be served: `code` is the dialect's error_code, `message` its error_msg."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def frame(self, req_id: str | int | None) -> dict[str, Any]:
        """The error object, which is also the last frame of a stream."""
        return {
            "req_id": req_id,
            "error_msg": self.message,
            "error_code": self.code,
            "version": _FORMAT,
            "timestamp": time.time(),
        }


def unexpected(what: str) -> PaddleError:
    """A request that PaddleNLP takes no further for a reason that its own checks don't know."""
    return PaddleError(REJECTED, _UNEXPECTED + what)


def queue_full(waiting: int, limit: int) -> PaddleError:
    return PaddleError(REJECTED, f"cached task num ({waiting}) exceeds the limit ({limit})")


def duplicate(name: str | int | None) -> PaddleError:
    return PaddleError(
        REJECTED, f"The req_id {name} already exists in the current batch, the current request will be ignored."
    )


def translated(error: RequestError, waiting: int, limit: int, *, strict: bool) -> PaddleError:
    """What the dialect says for an error of ours; `waiting` and `limit` are of the engine's queue."""
    if error.status == 429:
        return queue_full(max(waiting, limit), limit)
    if error.status == 504:
        return PaddleError(HANDLER, "" if strict else error.message)
    if error.status >= 500:
        lost = error.status == 503 or isinstance(error, EngineDead)
        status = "StatusCode.UNAVAILABLE" if lost else "StatusCode.INTERNAL"
        return PaddleError(BACKEND, f"status is {status}, msg is {error.message}")
    return unexpected(error.message)
