"""A server that speaks enough of OpenAI's API to test clients against, in a thread of the test."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class FakeServer:
    """Answers completions with `word ` repeated; records every request. `refuse` makes each answer that status.

    `cut` makes streams stop after so many events; `split` writes each stream in pieces of so many bytes.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse = 0
        self.cut = -1
        self.split = 0
        self.usage = True
        self.url = ""

    def events(self, body: dict[str, Any]) -> list[str]:
        count = body.get("max_tokens") or 3
        chat = "messages" in body
        choice: dict[str, Any] = {"delta": {"content": "word "}} if chat else {"text": "word "}
        events = [json.dumps({"choices": [{"index": 0, **choice}]}) for _ in range(count)]
        if self.usage and body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": len(body.get("prompt", "")), "completion_tokens": count}
            events.append(json.dumps({"choices": [], "usage": usage}))
        return [*events, "[DONE]"] if self.cut < 0 else events[: self.cut]


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        server: ClassVar[ThreadingHTTPServer]
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "fake-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(body | {"path": self.path})
            fake.headers.append(dict(self.headers))
            if fake.refuse:
                self.answer(fake.refuse, {"error": {"message": 'no "such" thing', "param": "model"}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            stream = "".join(f"data: {event}\n\n" for event in fake.events(body)).encode()
            size = fake.split or len(stream)
            for start in range(0, len(stream), size):
                self.wfile.write(stream[start : start + size])
                self.wfile.flush()
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
