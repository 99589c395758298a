"""The errors that Oarlock raises for reasons a user can act on. Every process uses them; this module imports nothing.

Each message says what was given, and what would have been right.
"""


class OarlockError(Exception):
    """Something the user can act on went wrong; the text is meant to be read without a traceback."""


class SettingError(OarlockError):
    """A flag or an environment variable is unknown, malformed or out of range."""


class RequestError(OarlockError):
    """One request cannot be served. It ends this request and touches no other.

    `field` is the request's field at fault, in dotted form (`messages[2].content`), or "" for the body as a whole.
    `status` is the HTTP status. `code` is OpenAI's machine-readable code, `kind` its error type.
    `retry_after` (seconds) is sent as Retry-After when it is above zero.
    """

    def __init__(
        self,
        field: str,
        message: str,
        status: int = 400,
        code: str | None = None,
        *,
        kind: str = "invalid_request_error",
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.status = status
        self.code = code
        self.kind = kind
        self.retry_after = retry_after
