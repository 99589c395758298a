"""One choice of an answer: its tokens become text here, stop strings end it, scores wait for their text.

Runs in the server processes; knows neither HTTP nor JSON.
"""

from collections.abc import Sequence

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.models.detokenizer import StreamDecoder
from oarlock_runtime.server.http.logprobs import TokenScore
from oarlock_runtime.server.http.stops import StopMatcher

Alternatives = tuple[float, list[int], list[float]]  # log-probability of the token, then the best ids and theirs


class Choice:
    """Grows by `push`. `reason` is None while it runs, then OpenAI's finish_reason; `cut` = the engine must be told."""

    __slots__ = ("_decoder", "_matcher", "_min_tokens", "_scores", "_seen", "_shown", "count", "cut", "index", "reason")

    def __init__(self, index: int, decoder: StreamDecoder, stops: Sequence[str], min_tokens: int) -> None:
        self.index = index
        self.count = 0  # generated tokens, the one that ended it included
        self.reason: str | None = None
        self.cut = False
        self._decoder = decoder
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens
        self._seen = 0  # characters decoded
        self._shown = 0  # characters let out
        self._scores: list[TokenScore] = []

    def push(self, token: int, finish: int, alternatives: Alternatives | None = None) -> str:
        """Takes one step's token (-1: none) and how it ended (Finish); returns the text that is certain now."""
        piece = ""
        if token >= 0:
            self.count += 1
            if finish != Finish.STOP:  # the token that ends an answer is no part of it
                piece = self._decoder.push((token,))
                if alternatives is not None:
                    self._scores.append(TokenScore(token, *alternatives, offset=self._seen))
        if finish:
            piece += self._decoder.flush()
            self.reason = "stop" if finish == Finish.STOP else "length"
        self._seen += len(piece)
        if self._matcher is not None:
            piece = self._match(self._matcher, piece, finish)
        self._shown += len(piece)
        return piece

    def _match(self, matcher: StopMatcher, piece: str, finish: int) -> str:
        if self.count < self._min_tokens:
            return matcher.flush() + piece
        text = matcher.push(piece)
        if matcher.stopped:
            self.cut = not finish
            self.reason = "stop"
            self._seen = self._shown + len(text)
            self._scores = [score for score in self._scores if score.offset < self._seen]
        elif finish:
            text += matcher.flush()
        return text

    def take_scores(self) -> list[TokenScore]:
        """The scores of tokens whose text was let out since the last call; all that are left once it ended."""
        if self.reason is not None:
            ready, self._scores = self._scores, []
            return ready
        count = sum(1 for score in self._scores if score.offset < self._shown)
        ready, self._scores = self._scores[:count], self._scores[count:]
        return ready
