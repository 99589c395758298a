"""The load generator's HTTP client: one POST, one stream of events, timed. Runs in the bench's own process.

It must leave the machine to the server that it measures, so nothing is parsed while a stream runs: events are counted
where they lie in the bytes, and the counts of tokens are taken from the usage at the stream's end.
"""

import asyncio
import json
import re
import ssl
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from oarlock_runtime.cli.bench.dialects import DIALECTS, Dialect
from oarlock_runtime.errors import OarlockError

ERROR_BYTES = 1 << 16  # bytes kept of an answer that is no stream


@dataclass
class Trace:
    """What became of one request. Times in seconds since its start; an error leaves the other fields as they were."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    first: float = 0.0  # to the first token
    total: float = 0.0  # to the last token
    error: str = ""

    @property
    def per_token(self) -> float:
        """Seconds between two tokens after the first."""
        return (self.total - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


class Endpoint:
    """A server, and the dialect in which it is asked."""

    def __init__(self, url: str, api_key: str = "", timeout: float = 600.0, dialect: str = "openai") -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OarlockError(f"{url!r} is no http address; for example http://127.0.0.1:9965")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.dialect = DIALECTS[dialect]
        self.label = self.url if dialect == "openai" else f"{self.url} ({dialect})"
        self.host = parts.hostname
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.timeout = timeout
        self.path = parts.path.rstrip("/").removesuffix("/v1")
        self._head = f"Host: {parts.netloc}\r\nConnection: close\r\nAccept: */*\r\n"
        if api_key:
            self._head += f"Authorization: Bearer {api_key}\r\n"

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = f"{method} {self.path}{path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    async def complete(self, body: bytes) -> Trace:
        """Sends a body and follows its stream to the end. Never raises; errors are in the trace."""
        return (await self._exchange(self.request("POST", self.dialect.path, body))).trace

    async def model(self) -> str:
        """The name of the first model that the server lists; OarlockError when it doesn't answer."""
        answer = await self._exchange(self.request("GET", "/v1/models"))
        if answer.status != 200:
            raise OarlockError(f"{self.url}/v1/models: {answer.trace.error or 'no list of models'}")
        try:
            return str(json.loads(answer.content())["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise OarlockError(f"{self.url}/v1/models answered with no list of models") from error

    async def _exchange(self, request: bytes) -> "Answer":
        loop = asyncio.get_running_loop()
        answer = Answer(loop.create_future(), request, self.dialect)
        transport = None
        try:
            async with asyncio.timeout(self.timeout):
                transport, _ = await loop.create_connection(lambda: answer, self.host, self.port, ssl=self.tls)
                await answer.ended
        except TimeoutError:
            answer.trace.error = f"no end after {self.timeout:g} s"
        except OSError as error:
            answer.trace.error = str(error)
        finally:
            if transport is not None:
                transport.close()
        answer.close()
        return answer


class Answer(asyncio.Protocol):
    """Reads one answer: its status, and either a stream of events, which is counted, or a body, which is kept."""

    def __init__(self, ended: "asyncio.Future[None]", request: bytes, dialect: Dialect) -> None:
        self.ended = ended
        self.trace = Trace()
        self.status = 0
        self._request = request
        self._dialect = dialect
        self._start = time.perf_counter()
        self._events = 0
        self._streams = False
        self._done = False
        self._head = b""
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._start = time.perf_counter()
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            words = head.split(None, 2)
            self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 599
            self._streams = self.status == 200 and b"text/event-stream" in head.lower()
            data = b"\n" + rest
        if not self._streams:
            self._tail = (self._tail + data)[:ERROR_BYTES]
            return
        # Bytes that may hold the beginning of a marker are looked at twice, but a whole marker fits in them only once.
        event = self._dialect.event
        seen = self._tail[1 - len(event) :] + data
        events = seen.count(event)
        self._tail = (self._tail + data)[-self._dialect.tail :]
        self._done = self._dialect.done in self._tail
        extra = self._done and not self._dialect.last_has_token
        if events > extra:
            self.trace.total = time.perf_counter() - self._start
            self.trace.first = self.trace.first or self.trace.total
        self._events += events - extra
        if self._done and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            if error is not None or not self.status:
                self.trace.error = str(error or "the server closed the connection without an answer")
            self.ended.set_result(None)

    def content(self) -> bytes:
        """The body of an answer that is no stream; from its first brace to its last, which drops chunk sizes."""
        return self._tail[self._tail.find(b"{") : self._tail.rfind(b"}") + 1]

    def close(self) -> None:
        """Fills in the trace's counts and error from the end of the stream."""
        if self.trace.error:
            return
        if self.status != 200:
            self.trace.error = f"status {self.status}: {message_of(self.content())}"
        elif self._streams and not self._events:
            self.trace.error = "a stream without a token"
        elif self._streams and b'"error"' in self._tail and b'"message"' in self._tail:
            self.trace.error = message_of(self._tail[self._tail.find(b'"error"') :])
        elif self._streams and not self._done:
            self.trace.error = "the server ended the stream early"
        else:
            self.trace.output_tokens = last_number(b"completion_tokens", self._tail) or self._events
            self.trace.prompt_tokens = last_number(b"prompt_tokens", self._tail)


def last_number(field: bytes, text: bytes) -> int:
    found = re.findall(rb'"' + field + rb'":\s*(\d+)', text)
    return int(found[-1]) if found else 0


def message_of(body: bytes) -> str:
    """The message of an error in OpenAI's shape, or the beginning of what came instead."""
    found = re.search(rb'"message":\s*("(?:[^"\\]|\\.)*")', body)
    return str(json.loads(found[1])) if found else body[:200].decode(errors="replace") or "an empty answer"
