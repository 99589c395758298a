"""The real HTTP application on a real uvicorn, and gRPC's, over an engine whose answers are written in advance."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.messages import EngineReady
from oarlock_runtime.ipc.stream import Chunk, Logprob, TokenStream
from oarlock_runtime.models.detokenizer import CHARACTER_OF_BYTE
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.grpc.front import GrpcFront
from oarlock_runtime.server.http.app import build_app
from oarlock_runtime.server.service import Service
from oarlock_runtime.settings import Settings

READY = EngineReady(
    pid=1,
    model="tiny",
    family="llama",
    vocab=512,
    max_context=512,
    max_sequences=8,
    max_waiting=8,
    blocks=64,
    weight_bytes=0,
    kv_bytes=0,
    step_weight_bytes=0,
    context=512,
)


class ScriptedClient:
    """Stands for EngineClient: every request gets `text`, a token a byte, until its own limits end it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = "Hello there, world!"
        self.pace = 0.0  # seconds a step
        self.seats = 1000  # requests at once; more are refused
        self.fail_after = -1  # tokens after which a request ends with an error
        self.heartbeat_age = 0.0
        self.stats = EngineStats()
        self.added: list[tuple[list[int], SamplingParams]] = []
        self.salts: list[str] = []
        self.running = 0
        self._gone: set[int] = set()

    async def add(
        self, prompt: list[int], sampling: SamplingParams, cache_salt: str = "", name: str = ""
    ) -> TokenStream:
        self.salts.append(cache_salt)
        await asyncio.sleep(0)
        if self.running >= self.seats:
            raise RequestError("", "full", 429, "queue_full", kind="rate_limit_error", retry_after=3)
        self.running += 1
        self.added.append((prompt, sampling))
        stream = TokenStream(len(self.added), sampling.top_logprobs, sampling.prompt_logprobs, self._abort)
        self._task = asyncio.create_task(self._run(stream, prompt, sampling))
        return stream

    @property
    def aborted(self) -> int:
        """Requests that were aborted."""
        return len(self._gone)

    def _abort(self, request_id: int) -> None:
        self._gone.add(request_id)

    async def _run(self, stream: TokenStream, prompt: list[int], sampling: SamplingParams) -> None:
        tokens = [*byte_tokens(self.tokenizer, self.text), 2]
        if sampling.prompt_logprobs >= 0:
            stream.pending.prompt_logprobs += [_score(token, sampling.prompt_logprobs) for token in prompt[1:]]
        for count, token in enumerate(tokens, start=1):
            await asyncio.sleep(self.pace)
            if stream.request_id in self._gone:
                break
            chunk: Chunk = stream.pending
            if count == 1:
                chunk.cached_tokens, chunk.queue_seconds = 0, 0.001
            if sampling.max_tokens:
                chunk.token_ids.append(token)
                if sampling.top_logprobs >= 0:
                    chunk.logprobs.append(_score(token, sampling.top_logprobs))
            if count == self.fail_after:
                chunk.finish, chunk.error = Finish.ERROR, "the scripted engine failed"
            elif token in sampling.stop_token_ids and count >= sampling.min_tokens:
                chunk.finish = Finish.STOP
            elif count >= sampling.max_tokens:
                chunk.finish = Finish.LENGTH
            ended = bool(chunk.finish)
            stream.wake()
            if ended:
                break
        self.running -= 1


def byte_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte of `text`."""
    return [tokenizer.token_id(CHARACTER_OF_BYTE[byte]) or 0 for byte in text.encode()]


def _score(token: int, top: int) -> Logprob:
    return Logprob(-0.5, [((token + more) % 512, -0.5 - more) for more in range(top)])


class ScriptedApi:
    """A running server; `client` is the engine's stand-in, `service` what the endpoints share."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings, send_buffer: int) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._started = threading.Event()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if send_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.client = ScriptedClient(self.tokenizer)
        client: Any = self.client
        self.service = Service(self.settings, client)
        self.service.open(self.tokenizer, READY)
        config = uvicorn.Config(build_app(self.service), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        self._web = uvicorn.Server(config)
        watch = asyncio.create_task(self.service.calls.watch())
        self._fronts = [GrpcFront(self.service)] if self.settings.grpc_port else []
        calls = [asyncio.create_task(front.serve()) for front in self._fronts]
        for front in self._fronts:
            await front.started.wait()
        self._started.set()
        await self._web.serve(sockets=[self._listener])
        await asyncio.gather(*calls)
        watch.cancel()

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._web.should_exit = True
        for front in self._fronts:
            self.loop.call_soon_threadsafe(front.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def scripted_api(
    tokenizer: Tokenizer, send_buffer: int = 0, grpc_port: int = 0, **settings: Any
) -> Iterator[ScriptedApi]:
    """A server with `settings`; a small `send_buffer` (bytes, 0: the kernel's) shows slow readers sooner."""
    chosen = Settings(model=str(Path("models/tiny")), grpc_port=grpc_port, **settings)
    api = ScriptedApi(tokenizer, chosen, send_buffer)
    api.start()
    try:
        yield api
    finally:
        api.stop()
