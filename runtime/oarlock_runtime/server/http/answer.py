"""All choices of one answer: takes tokens as they come, gives chunks of a stream or the whole. Runs in the servers."""

from typing import Any

import numpy as np

from oarlock_runtime.ipc.messages import PromptScores
from oarlock_runtime.models.tokenizer import Tokenizer
from oarlock_runtime.server.http.choice import Alternatives, Choice
from oarlock_runtime.server.http.generation import Generation
from oarlock_runtime.server.http.logprobs import TokenScore, chat_logprobs, completion_logprobs
from oarlock_runtime.server.http.replies import Replies, usage_object


class Answer:
    """The choices of one call; `complete` once all have ended."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._choices = [
            Choice(index, tokenizer.stream(), generation.stop, params.min_tokens)
            for index, params in enumerate(generation.sampling)
        ]
        self._texts: list[list[str]] = [[] for _ in self._choices]
        self._scores: list[list[TokenScore]] = [[] for _ in self._choices]
        self._opened = [False] * len(self._choices)
        self._left = len(self._choices)

    @property
    def complete(self) -> bool:
        return self._left == 0

    @property
    def completion_tokens(self) -> int:
        return sum(choice.count for choice in self._choices)

    @property
    def longest(self) -> int:
        """Tokens of the longest choice."""
        return max(choice.count for choice in self._choices)

    def reasons(self) -> list[str]:
        return [choice.reason or "" for choice in self._choices]

    def add_prompt_scores(self, arrived: list[tuple[int, PromptScores]]) -> None:
        """Scores of prompt tokens, which an echo shows before the choice's own."""
        for index, scores in arrived:
            prompt = self._generation.prompts[index // self._generation.n]
            own = np.frombuffer(scores.logprobs, np.float32).tolist()
            top_ids = np.frombuffer(scores.top_ids, np.int32).reshape(len(own), scores.width)
            tops = np.frombuffer(scores.top_logprobs, np.float32).reshape(len(own), scores.width)
            shown = self._generation.logprobs
            for row, logprob in enumerate(own):
                token = prompt[scores.start + row]
                alternatives = (top_ids[row, :shown].tolist(), tops[row, :shown].tolist())
                self._scores[index].append(TokenScore(token, logprob, *alternatives, offset=0))

    def push(
        self,
        index: int,
        token: int,
        finish: int,
        scores: Alternatives | None,
        chunks: list[bytes],
        replies: Replies | None,
    ) -> bool:
        """Takes a token of choice `index`, appends the chunks that it makes; whether a stop string ended the choice."""
        choice = self._choices[index]
        if choice.reason is not None:
            return False  # stopped by a string; the engine had already computed more
        shown = self._generation.logprobs
        wanted = None if scores is None or shown < 0 else (scores[0], scores[1][:shown], scores[2][:shown])
        text = choice.push(token, finish, wanted)
        if not self._opened[index]:
            self._opened[index] = True
            text = self._open(index, text, chunks, replies)
        if choice.reason is not None:
            self._left -= 1
        if shown >= 0:
            self._scores[index] += self._placed(index, choice)
        if replies is None:
            self._texts[index].append(text)
            return choice.cut
        told = None
        if shown >= 0:
            ready, self._scores[index] = self._scores[index], []
            told = self._told(ready) if ready else None
        if text or told is not None:
            chunks.append(replies.text(index, text, told))
        if choice.reason is not None:
            chunks.append(replies.finish(index, choice.reason))
        return choice.cut

    def _open(self, index: int, text: str, chunks: list[bytes], replies: Replies | None) -> str:
        """What comes before a choice's own text: the role of a chat, the echo of a completion."""
        generation = self._generation
        if generation.chat:
            if replies is not None:
                chunks.append(replies.role(index))
            return text
        if not generation.echo:
            return text
        prompt = generation.prompts[index // generation.n]
        if generation.logprobs >= 0:
            scores = self._scores[index]
            scores.insert(0, TokenScore(prompt[0], None, [], [], offset=0))
            decoder = self._tokenizer.stream(start=True)
            offset = 0
            for score in scores:
                score.offset = offset
                offset += len(decoder.push((score.token,)))
        return generation.echo[index // generation.n] + text

    def _placed(self, index: int, choice: Choice) -> list[TokenScore]:
        """The scores whose text is out, their offsets counted from the beginning of the echo."""
        scores = choice.take_scores()
        if self._generation.echo:
            for score in scores:
                score.offset += len(self._generation.echo[index // self._generation.n])
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

    def usage(self, cached: dict[int, int]) -> dict[str, Any]:
        """`usage`; a prompt counts once, however many choices continue it. `cached`: tokens reused, by choice."""
        prompts = self._generation.prompts
        reused = sum(cached.get(index * self._generation.n, 0) for index in range(len(prompts)))
        return usage_object(sum(map(len, prompts)), self.completion_tokens, reused)
