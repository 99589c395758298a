"""All choices of one answer: takes what the engine sends, gives events of a stream or the whole. Runs in servers."""

from typing import Any

from oarlock_runtime.engine.request import Finish
from oarlock_runtime.errors import RequestError
from oarlock_runtime.ipc.stream import Chunk
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.choice import Choice
from oarlock_runtime.server.http.generation import Generation
from oarlock_runtime.server.http.logprobs import TokenScore, chat_logprobs, completion_logprobs
from oarlock_runtime.server.http.replies import Replies, usage_object


class Answer:
    """The choices of one call; `complete` once all have ended. Without `replies` it is collected, not streamed."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, replies: Replies | None) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._replies = replies
        self._choices = [
            Choice(tokenizer.stream(), generation.stop, params.min_tokens) for params in generation.sampling
        ]
        self._texts: list[list[str]] = [[] for _ in self._choices]
        self._scores: list[list[TokenScore]] = [[] for _ in self._choices]
        self._cached: dict[int, int] = {}  # prompt tokens found in the prefix cache, by choice
        self._opened = [False] * len(self._choices)
        self._left = len(self._choices)
        self.complete = False
        self.queue_seconds = 0.0  # of the choice that waited longest

    @property
    def tokens(self) -> int:
        """Tokens generated, over all choices."""
        return sum(choice.count for choice in self._choices)

    @property
    def longest(self) -> int:
        """Tokens of the longest choice."""
        return max(choice.count for choice in self._choices)

    def reasons(self) -> list[str]:
        """Why each choice ended, as OpenAI calls it."""
        return [choice.reason or "" for choice in self._choices]

    def push(self, index: int, chunk: Chunk, out: list[bytes]) -> bool:
        """Takes a chunk of choice `index` and appends the events that it makes; whether a stop string ended the choice.

        RequestError when the engine ended the request for another reason than the model's.
        """
        choice, replies = self._choices[index], self._replies
        if choice.reason is not None:
            return False  # stopped by a string; the engine had already computed more
        if chunk.finish >= Finish.ABORT:
            raise _ended_badly(chunk)
        if chunk.cached_tokens >= 0:
            self._cached[index] = chunk.cached_tokens
            self.queue_seconds = max(self.queue_seconds, chunk.queue_seconds)
        scored = self._generation.logprobs >= 0
        opens = not self._opened[index] and bool(chunk.token_ids or chunk.finish)
        # A prompt of one token has no score that the engine could send, but it is shown all the same.
        alone = opens and bool(self._generation.echo) and not self._scores[index]
        if scored and (chunk.prompt_logprobs or alone):
            self._add_prompt_scores(index, chunk)
        text = choice.push(chunk)
        if opens:
            self._opened[index] = True
            text = self._open(index, text, out)
        if scored:
            self._scores[index] += self._placed(index, choice)
        if replies is None:
            self._texts[index].append(text)
        elif scored or choice.reason is not None:
            self._emit(replies, index, text, choice.reason, out)
        elif text:
            out.append(replies.text(index, text))
        if choice.reason is not None:
            self._left -= 1
            self.complete = self._left == 0
        return choice.cut

    def _emit(self, replies: Replies, index: int, text: str, reason: str | None, out: list[bytes]) -> None:
        told = None
        if self._scores[index] and self._opened[index]:
            told = self._told(self._scores[index])
            self._scores[index] = []
        if text or told is not None:
            out.append(replies.text(index, text, told))
        if reason is not None:
            out.append(replies.finish(index, reason))

    def _open(self, index: int, text: str, out: list[bytes]) -> str:
        """What comes before a choice's own text: the role of a chat, the echo of a completion."""
        generation = self._generation
        if generation.chat and self._replies is not None:
            out.append(self._replies.role(index))
        return self._echo(index) + text

    def _echo(self, index: int) -> str:
        generation = self._generation
        return generation.echo[index // generation.n] if generation.echo else ""

    def _add_prompt_scores(self, index: int, chunk: Chunk) -> None:
        """Scores of prompt tokens, which an echo shows before the choice's own; the first token has none."""
        prompt = self._generation.prompts[index // self._generation.n]
        scores = self._scores[index]
        if not scores:
            scores.append(TokenScore(prompt[0], None, [], 0))
        decoder = self._tokenizer.stream(start=True)
        offset = len(decoder.push(prompt[: len(scores)]))
        for logprob in chunk.prompt_logprobs:
            token = prompt[len(scores)]
            scores.append(TokenScore(token, logprob.logprob, logprob.top, offset))
            offset += len(decoder.push((token,)))

    def _placed(self, index: int, choice: Choice) -> list[TokenScore]:
        """The scores whose text is out, their offsets counted from the beginning of the echo."""
        scores = choice.take_scores()
        for score in scores:
            score.offset += len(self._echo(index))
        return scores

    def _told(self, scores: list[TokenScore]) -> dict[str, Any]:
        if self._generation.chat:
            return chat_logprobs(scores, self._tokenizer.token_bytes)
        return completion_logprobs(scores, self._tokenizer.token_text, self._generation.logprobs)

    def whole(self) -> list[tuple[str, str, dict[str, Any] | None]]:
        """(text, finish reason, logprobs) of each choice."""
        shown = self._generation.logprobs >= 0
        return [
            ("".join(texts), choice.reason or "", self._told(scores) if shown else None)
            for choice, texts, scores in zip(self._choices, self._texts, self._scores, strict=True)
        ]

    def usage(self) -> dict[str, Any]:
        """`usage`; a prompt counts once, however many choices continue it."""
        prompts = self._generation.prompts
        reused = sum(self._cached.get(index * self._generation.n, 0) for index in range(len(prompts)))
        return usage_object(sum(map(len, prompts)), self.tokens, reused)


def _ended_badly(chunk: Chunk) -> RequestError:
    if chunk.finish == Finish.ABORT:
        return RequestError("", "the server is stopping", 503, "server_stopping", kind="server_error")
    reason = chunk.error or "the engine failed on this request"
    return RequestError("", reason, 500, "engine_error", kind="server_error")
