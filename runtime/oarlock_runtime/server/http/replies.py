"""OpenAI's answers as bytes: objects, chunks of a stream, errors. Runs in the server processes.

A stream repeats the same JSON around every piece of text, so that frame is made once and each chunk is a few joined
bytes.
"""

import secrets
import time
from typing import Any

import msgspec

from oarlock_runtime.errors import RequestError

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def error_object(error: RequestError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.field or None,
            "code": error.code,
        }
    }


def error_event(error: RequestError) -> bytes:
    """An error in the middle of a stream, where no status can be sent any more."""
    return b"data: " + _encode(error_object(error)) + b"\n\n"


def usage_object(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Replies:
    """The answers to one call. `chat` chooses between the two shapes; `with_usage` is stream_options.include_usage."""

    __slots__ = ("_frames", "_plain", "_tail", "chat", "head", "with_usage")

    def __init__(self, *, chat: bool, stream: bool, model: str, fingerprint: str, with_usage: bool = False) -> None:
        self.chat = chat
        self.with_usage = with_usage
        kind = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
        self.head: dict[str, Any] = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._tail = b"]" + (b',"usage":null' if with_usage else b"") + b"}\n\n"
        self._frames: dict[int, bytes] = {}
        self._plain = self._scored(b"null")  # what follows a piece of text

    def _frame(self, index: int) -> bytes:
        choice = b'{"index":%d,' % index + (b'"delta":{"content":' if self.chat else b'"text":')
        frame = self._frames[index] = b"data: " + _encode(self.head)[:-1] + b',"choices":[' + choice
        return frame

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        """A chunk with a piece of text."""
        frame = self._frames.get(index) or self._frame(index)
        return frame + _encode(text) + (self._plain if logprobs is None else self._scored(_encode(logprobs)))

    def _scored(self, logprobs: bytes) -> bytes:
        close = b'},"logprobs":' if self.chat else b',"logprobs":'
        return close + logprobs + b',"finish_reason":null}' + self._tail

    def role(self, index: int) -> bytes:
        """The chunk that opens each choice of a chat."""
        return self._event(index, {"delta": {"role": "assistant", "content": ""}, "logprobs": None}, None)

    def finish(self, index: int, reason: str) -> bytes:
        """The chunk that closes each choice."""
        return self._event(index, {"delta": {}} if self.chat else {"text": ""}, reason)

    def _event(self, index: int, content: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return b"data: " + _encode(self.head)[:-1] + b',"choices":[' + _encode(choice) + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk that closes a stream with include_usage."""
        return b"data: " + _encode({**self.head, "choices": [], "usage": usage}) + b"\n\n"

    def whole(self, choices: list[tuple[str, str, dict[str, Any] | None]], usage: dict[str, Any]) -> bytes:
        """The answer that isn't streamed; choices are (text, finish reason, logprobs)."""
        shown = []
        for index, (text, reason, logprobs) in enumerate(choices):
            said: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            )
            shown.append({"index": index, **said, "logprobs": logprobs, "finish_reason": reason})
        return _encode({**self.head, "choices": shown, "usage": usage})
