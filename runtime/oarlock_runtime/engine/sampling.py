"""How one request wants its tokens chosen. Made by a server, checked by server and engine alike."""

import math

import msgspec

from oarlock_runtime.errors import RequestError

MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
GREEDY_BELOW = 1e-4  # a smaller temperature would overflow the logits, and draws nothing but the best token


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Sampling and stopping of one request. Defaults draw from the model's own distribution.

    A request stops at one of the model's end tokens (unless `ignore_eos`), at one of `stop_token_ids`, after
    `max_tokens` generated tokens, or at the end of the context. Stop strings are the server's, which sees text.
    """

    max_tokens: int = 16  # 0 computes the prompt alone
    min_tokens: int = 0  # no end token and no stop_token_ids before so many
    temperature: float = 1.0  # 0 = greedy, the lowest id on a tie
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1 = off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    last_prompt_token_counts: bool = False  # penalties: of the prompt its last token alone, as if it were generated
    seed: int | None = None  # None = another one each time; the same seed and prompt give the same tokens
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None  # the answer is JSON that follows it
    top_logprobs: int = -1  # alternatives reported with each token; 0 = the token's own, -1 = no log-probability
    prompt_logprobs: int = -1  # the same for the prompt's tokens

    @property
    def penalized(self) -> bool:
        """Whether a history of tokens is needed to draw the next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def validate(self, vocab: int) -> None:
        """Raises RequestError for the first field that is out of range for a model of `vocab` tokens."""
        _integer("max_tokens", self.max_tokens, 0, (1 << 31) - 1)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        _number("temperature", self.temperature, 0, 100)
        _number("top_p", self.top_p, 0, 1, above=True)
        _integer("top_k", self.top_k, -1, (1 << 31) - 1)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            _integer("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        _integer("top_logprobs", self.top_logprobs, -1, MAX_TOP_LOGPROBS)
        _integer("prompt_logprobs", self.prompt_logprobs, -1, MAX_TOP_LOGPROBS)
        _count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, vocab - 1)
        _count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, vocab - 1)
            _number(f"logit_bias.{token}", bias, -100, 100)


def _integer(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise RequestError(field, f"{field} is {value}; it must be from {low} to {high}")


def _number(field: str, value: float, low: float, high: float, above: bool = False) -> None:
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        bounds = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise RequestError(field, f"{field} is {value}; it must be {bounds}")


def _count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestError(field, f"{field} has {count} entries; at most {limit} are possible")
