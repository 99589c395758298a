"""One choice of an answer: its tokens become text here, stop strings end it, scores wait for their text.

Runs in the server processes; knows neither HTTP nor JSON.
"""

from collections.abc import Sequence

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.ipc.stream import Chunk, Logprob
from oarlock_runtime.models.detokenizer import StreamDecoder
from oarlock_runtime.server.http.logprobs import TokenScore
from oarlock_runtime.server.http.stops import StopMatcher


class Choice:
    """Grows by `push`. `reason` is None while it runs, then OpenAI's finish_reason; `cut`: the engine must be told."""

    __slots__ = ("_decoder", "_matcher", "_min_tokens", "_scores", "_seen", "_shown", "count", "cut", "reason")

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str], min_tokens: int) -> None:
        self.count = 0  # generated tokens, the one that ended it included
        self.reason: str | None = None
        self.cut = False
        self._decoder = decoder
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens
        self._seen = 0  # characters decoded
        self._shown = 0  # characters let out
        self._scores: list[TokenScore] = []

    def push(self, chunk: Chunk) -> str:
        """Takes what came since the last time; returns the text that is certain now."""
        tokens = chunk.token_ids
        if self._matcher is None and not chunk.logprobs:
            self.count += len(tokens)
            if chunk.finish == Finish.STOP:  # the token that ends an answer is no part of it
                tokens = tokens[:-1]
            text = self._decoder.push(tokens) if tokens else ""
        else:
            text = self._push_each(self._matcher, chunk)
        if chunk.finish and self.reason is None:
            text += self._close("stop" if chunk.finish == Finish.STOP else "length")
        self._shown += len(text)
        return text

    def _push_each(self, matcher: StopMatcher | None, chunk: Chunk) -> str:
        """Token by token, for stop strings and scores."""
        last = len(chunk.token_ids) - 1
        text = ""
        scores: list[Logprob] = chunk.logprobs
        for place, token in enumerate(chunk.token_ids):
            self.count += 1
            if place == last and chunk.finish == Finish.STOP:
                break
            piece = self._decoder.push((token,))
            if scores:
                self._scores.append(TokenScore(token, scores[place].logprob, scores[place].top, self._seen))
            self._seen += len(piece)
            text += piece if matcher is None else self._match(matcher, piece, len(text))
            if self.reason is not None:
                self.cut = not chunk.finish
                break
        return text

    def _match(self, matcher: StopMatcher, piece: str, pending: int) -> str:
        if self.count < self._min_tokens:
            return matcher.flush() + piece
        text = matcher.push(piece)
        if matcher.stopped:
            self._stop_at(self._shown + pending + len(text))
        return text

    def _stop_at(self, end: int) -> None:
        self.reason = "stop"
        self._seen = end
        self._scores = [score for score in self._scores if score.offset < end]

    def _close(self, reason: str) -> str:
        """The rest of the text: a character left incomplete, and what might have become a stop string."""
        rest = self._decoder.flush()
        self._seen += len(rest)
        self.reason = reason
        if self._matcher is None:
            return rest
        text = self._matcher.push(rest)
        if self._matcher.stopped:
            self._stop_at(self._shown + len(text))
            return text
        return text + self._matcher.flush()

    def take_scores(self) -> list[TokenScore]:
        """The scores of tokens whose text was let out since the last call; all that are left once it ended."""
        if self.reason is not None:
            ready, self._scores = self._scores, []
            return ready
        count = sum(1 for score in self._scores if score.offset < self._shown)
        ready, self._scores = self._scores[:count], self._scores[count:]
        return ready
