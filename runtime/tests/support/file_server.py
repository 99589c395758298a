"""A web server of a few files that can be told to misbehave, for tests of downloads."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """Files by path, and what goes wrong: each entry of `faults` spoils one GET, oldest first.

    A fault is ("status", code), ("cut", bytes), ("stall", bytes) or ("drip", bytes) sent before it happens, or
    ("ignore-range",). `log` holds path and Range header of every GET.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[Any, ...]] = field(default_factory=list)
    log: list[tuple[str, str | None]] = field(default_factory=list)
    headers_seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    etags: bool = True
    heads: bool = True  # whether HEAD is answered
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve_files() -> Iterator[FileServer]:
    """Runs a FileServer on a free port of the loopback address."""
    state = FileServer()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    server_state: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state = self.server_state
        wanted = self.headers.get("Range")
        state.log.append((self.path, wanted))
        state.headers_seen.append({key.lower(): value for key, value in self.headers.items()})
        content = state.files.get(self.path)
        fault = state.faults.pop(0) if state.faults and content is not None else ("none",)
        if content is None or fault[0] == "status":
            self._head(404 if content is None else fault[1], 0, {})
            return
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        extra = {"ETag": etag} if state.etags else {}
        start, status = 0, 200
        fresh = self.headers.get("If-Range") in (None, etag)
        if wanted and fresh and fault[0] != "ignore-range":
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                self._head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
                return
            status = 206
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(status, len(content) - start, extra)
        self._send(content[start:], fault)

    def do_HEAD(self) -> None:
        content = self.server_state.files.get(self.path)
        refused = content is None or not self.server_state.heads
        self._head(405 if refused else 200, 0 if content is None else len(content), {})

    def _send(self, body: bytes, fault: tuple[Any, ...]) -> None:
        if fault[0] not in ("cut", "stall", "drip"):
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault[1]])
        self.wfile.flush()
        if fault[0] == "stall":
            self.server_state.closing.wait(5)
        for at in range(fault[1], fault[1] + 50 if fault[0] == "drip" else 0):
            if self.server_state.closing.wait(0.1):
                break
            self.wfile.write(body[at : at + 1])
        self.close_connection = True

    def _head(self, status: int, length: int, extra: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in extra.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: `log` of the server keeps what tests want to know."""


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def wait_until(condition: Any, limit_s: float = 10.0) -> None:
    """Returns once condition() holds; fails after limit_s."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
