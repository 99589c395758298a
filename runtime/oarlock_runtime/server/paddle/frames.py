"""From what the engine sends to PaddleNLP's frames, and to the answer that isn't streamed. Runs in servers.

A frame is a plain dict; its transport encodes it. `token` of all frames, joined, is `tokens_all` of the last.
"""

import time
from datetime import datetime
from typing import Any

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.ipc.stream import Chunk
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.choice import Choice
from oarlock_runtime.server.paddle.prepare import Prepared

Frame = dict[str, Any]


class Clock:
    """When a request passed each station, by the wall clock and (`started`) by the monotonic one."""

    __slots__ = ("preprocess_end", "preprocess_start", "queue_seconds", "received", "started")

    def __init__(self) -> None:
        self.received = self.preprocess_start = self.preprocess_end = time.time()
        self.started = time.monotonic()  # when the engine was given the request
        self.queue_seconds = 0.0  # that it waited there

    def prepared(self) -> None:
        """The request goes to the engine now."""
        self.preprocess_end = time.time()
        self.started = time.monotonic()

    def since_scheduled(self) -> float:
        return max(time.monotonic() - self.started - self.queue_seconds, 0.0)

    def told(self, *, http: bool) -> dict[str, str]:
        """The timestamps of a frame with `benchmark`."""
        scheduled = self.preprocess_end + self.queue_seconds
        received = {"http_received_time": _shown(self.received)} if http else {}
        return {
            **received,
            "preprocess_start_time": _shown(self.preprocess_start),
            "preprocess_end_time": _shown(self.preprocess_end),
            "schedule_start_time": _shown(scheduled),
            "inference_start_time": _shown(scheduled),
            "inference_current_step_time": _shown(time.time()),
        }


class Frames:
    """The frames of one request. `complete` once the last was made; then `text`, `usage` and `reason` are final."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer, clock: Clock, *, http: bool, strict: bool) -> None:
        self._prepared = prepared
        self._clock = clock
        self._http = http
        self._strict = strict
        self._choice = Choice(tokenizer.stream(), prepared.stop, prepared.sampling.min_tokens)
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._common: Frame = {  # of all frames, in the order of keys that PaddleNLP has
            "req_id": prepared.req_id,
            "is_end": 0,
            "token": "",
            "token_ids": [],
            "send_idx": 0,
            "inference_time_cost": 0.0,
            "infer_seed": prepared.seed,
            "return_all_tokens": prepared.return_all_tokens,
            "usage": {},
        }
        if http:
            self._common |= {"error_msg": "", "error_code": 0}

    @property
    def complete(self) -> bool:
        return self._choice.reason is not None

    @property
    def cut(self) -> bool:
        """Whether a stop sequence ended it, so that the engine must be told."""
        return self._choice.cut

    @property
    def reason(self) -> str:
        return self._choice.reason or ""

    @property
    def tokens(self) -> int:
        """Generated tokens, one that ended the answer included."""
        return self._choice.count

    @property
    def usage(self) -> dict[str, int]:
        return {"completion_tokens": self._choice.count, "prompt_tokens": len(self._prepared.prompt)}

    def push(self, chunk: Chunk) -> Frame | None:
        """Takes what came from the engine; the frame of it, unless only the last is wanted and this isn't it."""
        choice, sent, counted = self._choice, len(self._ids), self._choice.count
        if chunk.cached_tokens >= 0:
            self._clock.queue_seconds = chunk.queue_seconds
        text, ids = choice.push(chunk), chunk.token_ids
        if choice.reason is not None:
            ids = ids[: choice.count - counted]
            if chunk.finish == Finish.STOP and not choice.cut and len(ids) == len(chunk.token_ids):
                ids = ids[:-1]  # the token that ends an answer is no part of it
        self._ids += ids
        self._texts.append(text)
        if self._prepared.last_frame_only:
            if choice.reason is None:
                return None
            if not self._strict:
                text, ids, sent = self.text, self._ids, 0
        elif not text and not ids and choice.reason is None:
            return None
        return self._frame(text, ids, sent)

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self._texts)

    def _frame(self, text: str, ids: list[int], sent: int) -> Frame:
        frame = self._common.copy()
        frame["token"] = text
        frame["token_ids"] = ids
        frame["send_idx"] = sent
        frame["inference_time_cost"] = self._clock.since_scheduled()
        frame["usage"] = self.usage
        if self._choice.reason is not None:
            frame["is_end"] = 1
            frame["tokens_all_num"] = len(self._ids) + 1  # PaddleNLP counts the end
            frame["tokens_all_ids"] = self._ids
            frame["tokens_all"] = self.text
            if not self._strict:
                frame["finish_reason"] = self.reason
        if self._prepared.benchmark:
            frame |= self._clock.told(http=self._http)
        return frame

    def whole(self) -> Frame:
        """The answer that isn't streamed. Upstream's joins what frames were sent, which may be the last alone."""
        lost = self._strict and self._prepared.last_frame_only
        answer: Frame = {"result": self._texts[-1] if lost else self.text, "error_msg": "", "error_code": 0}
        if not self._strict:
            answer["tokens_all"] = self.text
        if self._prepared.return_usage:
            answer["usage"] = self.usage
        return answer


def _shown(moment: float) -> str:
    return str(datetime.fromtimestamp(moment))
