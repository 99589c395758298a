"""`oarlock chat`: a conversation in the terminal with a server's /v1/chat/completions, streamed as it is written.

One plain HTTP connection of the standard library per turn. Ctrl-C stops the answer, Ctrl-D leaves. With input from a
pipe the whole input is one message: the answer is printed and the command ends.
"""

import http.client
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from oarlock_runtime.cli.arguments import Parser, integer, number
from oarlock_runtime.cli.dispatch import UsageError
from oarlock_runtime.errors import OarlockError

DEFAULT_URL = "http://127.0.0.1:9965"
HELP = "/clear forgets the conversation, /system TEXT sets the system message; Ctrl-C stops an answer, Ctrl-D leaves"


def parser() -> Parser:
    flags = Parser(
        "chat", "Talks to a model behind OpenAI's API, in the terminal or through a pipe.", "In the chat: " + HELP + "."
    )
    flags.add_argument("--url", default=DEFAULT_URL, help=f"the server (default {DEFAULT_URL})")
    flags.add_argument("--model", default="default", help="the served model's name (default: the one that is served)")
    flags.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", ""), help="default: $OPENAI_API_KEY")
    flags.add_argument("--system", default="", help="system message")
    flags.add_argument("--max-tokens", type=integer(1), help="longest answer, in tokens (default: the server's)")
    flags.add_argument("--temperature", type=number(0, 2), help="0 = the likeliest token (default: the server's)")
    flags.add_argument("--seed", type=integer(0), help="the same seed gives the same answer")
    flags.add_argument("--timeout", type=number(1), default=300.0, help="seconds without a token (default 300)")
    return flags


class Conversation:
    """The messages so far and the server that answers them."""

    def __init__(
        self, url: str, options: dict[str, Any], system: str = "", api_key: str = "", timeout: float = 300.0
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url: {url!r} is no http address; for example {DEFAULT_URL}")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._parts = parts
        self._path = (parts.path.rstrip("/").removesuffix("/v1")) + "/v1/chat/completions"
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._options = options
        self._timeout = timeout
        self.system = system
        self.messages: list[dict[str, str]] = []

    def ask(self, text: str) -> Iterator[str]:
        """Sends a message and yields the answer piece by piece; one that is cut short is kept as it is."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        question = {"role": "user", "content": text}
        body = {"model": "default", "messages": [*system, *self.messages, question], "stream": True, **self._options}
        answer = ""
        try:
            for piece in self._stream(body):
                answer += piece
                yield piece
        finally:
            if answer:
                self.messages += [question, {"role": "assistant", "content": answer}]

    def _stream(self, body: dict[str, Any]) -> Iterator[str]:
        secure = self._parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        with closing(connect(str(self._parts.hostname), self._parts.port, timeout=self._timeout)) as connection:
            try:
                connection.request("POST", self._path, json.dumps(body), self._headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise OarlockError(f"{self.url} answered {response.status}: {error_text(response.read())}")
                yield from pieces(response)
            except TimeoutError as error:
                raise OarlockError(f"{self.url} sent nothing for {self._timeout:g} s") from error
            except (ConnectionError, OSError, http.client.HTTPException) as error:
                raise OarlockError(
                    f"{self.url}: {error or type(error).__name__}; is the server running (`oarlock serve`)?"
                ) from error


def pieces(response: Iterator[bytes]) -> Iterator[str]:
    """The text of each event of a stream of chat completion chunks."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise OarlockError(error_text(data))
        for choice in event.get("choices", ()):
            text = choice.get("delta", {}).get("content")
            if text:
                yield text
    raise OarlockError("the server ended the stream early")


def error_text(body: bytes) -> str:
    """The message of an error in OpenAI's shape, or the beginning of whatever came instead."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "nothing"


def show_answer(conversation: Conversation, text: str) -> None:
    for piece in conversation.ask(text):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print(flush=True)


def interactive(conversation: Conversation) -> None:
    import readline  # noqa: F401  (gives input() line editing and history)

    print(f"Talking to {conversation.url}. {HELP[0].upper()}{HELP[1:]}.".replace("/CLEAR", "/clear"))
    while True:
        try:
            line = input("\n> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        command, _, rest = line.partition(" ")
        if command == "/clear":
            conversation.messages.clear()
        elif command == "/system":
            conversation.system = rest.strip()
            print(f"system message: {conversation.system}" if conversation.system else "no system message")
        elif command.startswith("/"):
            print(HELP)
        elif line:
            try:
                show_answer(conversation, line)
            except KeyboardInterrupt:
                print(" [stopped]")
            except OarlockError as error:
                print(f"oarlock: {error}", file=sys.stderr)


def run(arguments: list[str]) -> int:
    flags = parser().read(arguments)
    wanted = {
        "model": flags.model,
        "max_tokens": flags.max_tokens,
        "temperature": flags.temperature,
        "seed": flags.seed,
    }
    options = {name: value for name, value in wanted.items() if value is not None}
    conversation = Conversation(flags.url, options, flags.system, flags.api_key, flags.timeout)
    if sys.stdin.isatty() and sys.stdout.isatty():
        interactive(conversation)
        return 0
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError("nothing to say: pipe a message in, for example `echo hi | oarlock chat`")
    show_answer(conversation, text)
    return 0
