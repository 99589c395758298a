"""What the endpoints of one server process share: tokenizer, limits, the engine, its calls, and whether it serves."""

import hashlib
import hmac
import time
from enum import Enum
from importlib.metadata import PackageNotFoundError, version

from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.client import EngineClient
from oarlock_runtime.ipc.messages import EngineReady
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.calls import Calls
from oarlock_runtime.server.limits import Limits
from oarlock_runtime.server.paddle.prepare import Rules
from oarlock_runtime.server.server_metrics import ServerMetrics
from oarlock_runtime.settings import Settings


def package_version() -> str:
    try:
        return version("oarlock")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return "0"


class State(Enum):
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


_CLOSED = {
    State.LOADING: ("the model is still being loaded", "loading"),
    State.DRAINING: ("the server is shutting down", "server_stopping"),
    State.FAILED: ("the engine is gone", "engine_dead"),
}


class Service:
    """Starts LOADING; `open` makes it serve, `close` ends that."""

    tokenizer: Tokenizer
    limits: Limits
    rules: Rules  # of the private dialect

    def __init__(self, settings: Settings, client: EngineClient) -> None:
        self.settings = settings
        self.client = client
        self.calls = Calls(
            slow_reader_seconds=settings.slow_reader_seconds, slow_reader_tokens=settings.slow_reader_tokens
        )
        self.live: set[str] = set()  # the req_id of each running private request, of which none may come twice
        self.metrics = ServerMetrics()
        self.version = package_version()
        self.model = settings.model_name
        self.created = int(time.time())
        self.state = State.LOADING
        facts = (self.version, settings.model, settings.dtype, settings.quantization, settings.device)
        self.fingerprint = "fp_" + hashlib.sha256("\0".join(facts).encode()).hexdigest()[:10]
        self._keys = [key.strip().encode() for key in settings.api_key.split(",") if key.strip()]

    def open(self, tokenizer: Tokenizer, engine: EngineReady) -> None:
        """The engine is ready, and so are we."""
        self.tokenizer = tokenizer
        self.limits = Limits(
            vocab=engine.vocab,
            max_context=engine.max_context,
            max_output_tokens=self.settings.max_output_tokens,
            max_n=self.settings.max_n,
            max_prompts=self.settings.max_prompts,
            max_choices=engine.max_sequences + engine.max_waiting,
            end_ids=tokenizer.eos_ids,
        )
        self.rules = Rules.of(self.settings, self.limits, engine.context)
        if self.state is State.LOADING:
            self.state = State.SERVING

    def close(self, state: State, *, now: bool = False) -> None:
        """No more calls from now on; `now` also ends those that run."""
        self.state = state
        if now:
            self.calls.fail_all(self._closed)

    @property
    def healthy(self) -> bool:
        """Whether a call would be served now."""
        return self.state is State.SERVING and not self._silent

    @property
    def _silent(self) -> bool:
        return self.client.heartbeat_age > self.settings.heartbeat_seconds

    def check_open(self) -> None:
        """Raises RequestError 503 unless calls are served now."""
        if not self.healthy:
            raise self._closed()

    def _closed(self) -> RequestError:
        message, code = _CLOSED.get(self.state, ("the engine does not answer", "engine_hangs"))
        return RequestError("", message, 503, code, kind="server_error", retry_after=5)

    def check_key(self, authorization: bytes) -> None:
        """Raises RequestError 401 when keys are set and the Authorization header holds none of them."""
        if not self._keys:
            return
        scheme, _, key = authorization.partition(b" ")
        known = [hmac.compare_digest(key.strip(), one) for one in self._keys]
        if scheme.lower() != b"bearer" or not any(known):
            given = "wrong" if authorization else "missing"
            raise RequestError(
                "", f"the API key is {given}; send it as `Authorization: Bearer KEY`", 401, "invalid_api_key"
            )

    def model_named(self, name: str | None) -> str:
        """The served model's name; RequestError 404 for any other."""
        if name is None or name in ("default", self.model):
            return self.model
        raise RequestError(
            "model",
            f"the model {name[:200]!r} does not exist; this server serves {self.model!r}",
            404,
            "model_not_found",
        )
