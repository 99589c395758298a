"""Answers that follow a JSON schema: which tokens may come next. Engine process; servers use `check_schema` alone.

llguidance walks the schema's grammar over the vocabulary's bytes: some tens of microseconds a token. Its work is
bounded by what it counts (fuel, items, states), so that no schema can hold up the requests of others for long.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.tokenizer import Tokenizer

FIELD = "response_format"
MAX_SCHEMA = 16 << 10  # characters; compiling happens between two steps, and one of this length takes up to 0.1 s
ANY_OBJECT = '{"type":"object"}'
_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"  # JSON allows any amount, and small models like to go on with it for ever


def check_schema(schema: str) -> None:
    """Raises RequestError when `schema`, a JSON schema as text, is malformed or holds what can't be enforced."""
    if len(schema) > MAX_SCHEMA:
        raise RequestError(FIELD, f"the JSON schema has {len(schema)} characters; at most {MAX_SCHEMA} are possible")
    problem = LLMatcher.validate_grammar(_grammar(schema), limits=_limits())
    if problem and not problem.startswith("WARNING"):
        raise _unusable(problem)


class Matcher:
    """Where one answer is in its grammar. A token counts once `accept` has taken it; looking ahead changes nothing."""

    __slots__ = ("_matcher",)

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allow(self, mask: npt.NDArray[np.uint32]) -> None:
        """Sets the bits of the tokens that may come next, in [ceil(vocab / 32)]; none when a limit was reached."""
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            mask[:] = 0

    def accept(self, token: int) -> bool:
        """Goes on by a token; False when it does not fit or a limit was reached."""
        accepted: bool = self._matcher.consume_token(token)
        return accepted


class Grammars:
    """Compiles schemas for one model of `vocab` tokens, whose answers end with one of `end_ids`."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_ids: Sequence[int]) -> None:
        if not end_ids:
            raise RequestError(FIELD, "this model has no end token, with which an answer could end")
        wrapped = TokenizerWrapper(_Vocabulary(tokenizer, vocab, end_ids[0]))
        self._tokenizer = LLTokenizer(wrapped, n_vocab=vocab, eos_token=list(end_ids))

    def matcher(self, schema: str) -> Matcher:
        """A matcher at the beginning of an answer. Raises RequestError as check_schema does."""
        if len(schema) > MAX_SCHEMA:
            check_schema(schema)
        made = LLMatcher(self._tokenizer, _grammar(schema), log_level=0, limits=_limits())
        if made.is_error():
            raise _unusable(made.get_error())
        return Matcher(made)


class _Vocabulary:
    """A tokenizer as llguidance asks for it. Ids that only pad the vocabulary spell nothing."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_id: int) -> None:
        self.eos_token_id = end_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab)]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_special=False)


def _grammar(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _SPACE})
    except ValueError as error:
        raise _unusable(str(error)) from None


def _limits() -> LLParserLimits:
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _unusable(problem: str) -> RequestError:
    return RequestError(
        FIELD, f"the JSON schema can't be used: {' '.join(problem.split())[:300]}", code="invalid_schema"
    )
