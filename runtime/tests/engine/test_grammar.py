"""Answers that follow a JSON schema, on the compiled core: always valid, and nobody else's tokens change."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.tiny import tiny_checkpoint

from oarlock_runtime.engine import kv_cache
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.grammar import ANY_OBJECT, MAX_SCHEMA, Grammars, check_schema
from oarlock_runtime.engine.request import Finish, Request, TokenFilter
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.tokenizer import Tokenizer, load_tokenizer

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22, 333]}, "s": {"type": "string", "maxLength": 3}},
        "required": ["ok", "n", "s"],
        "additionalProperties": False,
    }
)
BLOCKS, SEQUENCES, CONTEXT = 9, 6, 448


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[CoreExecutor, Tokenizer, int]:
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("models"), "llama")
    options = ExecutorOptions(
        max_sequences=SEQUENCES, max_context=CONTEXT, max_batched_tokens=96, kv_blocks=BLOCKS, threads=1
    )
    return load_executor(checkpoint, options), load_tokenizer(checkpoint.path), checkpoint.spec.vocab


class Run:
    """An engine over the shared model; `answers` fills with (tokens, finish, reason) by request."""

    def __init__(self, model: tuple[CoreExecutor, Tokenizer, int], **filters: TokenFilter) -> None:
        executor, self.tokenizer, vocab = model
        grammars = Grammars(self.tokenizer, vocab, self.tokenizer.eos_ids)
        config = EngineConfig(
            vocab=vocab,
            max_context=CONTEXT,
            max_sequences=SEQUENCES,
            max_batched_tokens=96,
            max_rows=executor.max_rows,
            blocks=BLOCKS,
            eos_ids=self.tokenizer.eos_ids,
        )
        self.engine = Engine(executor, config, lambda schema: filters.get(schema) or grammars.matcher(schema))
        self.answers: dict[int, tuple[list[int], Finish, str]] = {}

    def add(self, request_id: int, prompt: int = 9, **sampling: Any) -> None:
        ids = np.arange(prompt, dtype=np.int32) % 200 + 5
        wanted = {"max_tokens": 150, "seed": request_id, **sampling}
        self.engine.add(Request(request_id, ids, SamplingParams(**wanted)))
        self.answers[request_id] = ([], Finish.RUNNING, "")

    def finish(self) -> dict[int, tuple[list[int], Finish, str]]:
        while self.engine.has_work:
            output = self.engine.step()
            assert output is not None
            reasons = {failure.request_id: failure.message for failure in output.failures}
            rows = zip(output.request_ids.tolist(), output.token_ids.tolist(), output.finish.tolist(), strict=True)
            for request_id, token, finish in rows:
                tokens, _, _ = self.answers[request_id]
                self.answers[request_id] = (
                    tokens + [token] * (token >= 0),
                    Finish(finish),
                    reasons.get(request_id, ""),
                )
        stats = self.engine.stats()
        assert stats.blocks_used == 0 and stats.running == 0
        return self.answers

    def text(self, request_id: int) -> str:
        return self.tokenizer.decode(self.answers[request_id][0])


@pytest.fixture
def run(model: tuple[CoreExecutor, Tokenizer, int]) -> Iterator[Run]:
    yield Run(model)


def test_every_answer_follows_its_schema_and_the_crowd_changes_no_token(
    model: tuple[CoreExecutor, Tokenizer, int], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "ROOM_BLOCKS", 0)  # admits more than can run to their ends
    wanted = {
        number: {"prompt": 40 + 9 * number} | ({"json_schema": SCHEMA, "max_tokens": 300} if number % 2 else {})
        for number in range(1, 12)
    }
    for number, request in wanted.items():
        run.add(number, **request)
    run.finish()
    assert run.engine.stats().preemptions_total > 0
    for number, request in wanted.items():
        alone = Run(model)
        alone.add(number, **request)
        assert alone.finish()[number] == run.answers[number]
        if "json_schema" in request:
            answer = json.loads(run.text(number))
            assert set(answer) == {"ok", "n", "s"} and answer["n"] in (1, 22, 333) and len(answer["s"]) <= 3
            assert run.answers[number][1] == Finish.STOP


def test_an_object_of_any_kind(run: Run) -> None:
    run.add(1, json_schema=ANY_OBJECT, max_tokens=60, temperature=0)
    run.finish()
    assert run.text(1).startswith("{") and run.answers[1][1] in (Finish.STOP, Finish.LENGTH)


class Dead:
    """A filter that fails."""

    def __init__(self, allows: bool) -> None:
        self.allows = allows

    def allow(self, mask: npt.NDArray[np.uint32]) -> None:
        mask[:] = 0xFFFFFFFF if self.allows else 0

    def accept(self, token: int) -> bool:
        return False


@pytest.mark.parametrize("allows", [False, True])
def test_a_grammar_that_fails_ends_its_own_request_alone(
    model: tuple[CoreExecutor, Tokenizer, int], allows: bool
) -> None:
    run, alone = Run(model, dead=Dead(allows)), Run(model)
    run.add(1, json_schema="dead", ignore_eos=True)
    for one in (run, alone):
        one.add(2)
    answers = run.finish()
    assert answers[1][0] == [] and answers[1][1] == Finish.ERROR and "constraints" in answers[1][2]
    assert answers[2] == alone.finish()[2]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nope"}, "nope"),
        ({"type": "string", "pattern": "(a"}, "unclosed"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "#/x"}, "/x"),
        ({"$ref": "http://127.0.0.1:9/x"}, "http"),
        ({"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(20)]}, "JSON schema"),
        ({"enum": ["x" * MAX_SCHEMA]}, f"at most {MAX_SCHEMA}"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_server_and_engine(run: Run, schema: Any, words: str) -> None:
    text = json.dumps(schema)
    for check in (check_schema, lambda text: run.add(1, json_schema=text)):
        with pytest.raises(RequestError, match=words) as caught:
            check(text)
        assert (caught.value.field, caught.value.status) == ("response_format", 400)
    assert not run.engine.has_work


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
        {"type": "integer", "multipleOf": 999983, "minimum": 1},
        {"type": "array", "minItems": 1000000, "items": {"type": "string"}},
        {"$ref": "#"},
    ],
)
def test_a_schema_made_to_be_expensive_harms_nobody(
    model: tuple[CoreExecutor, Tokenizer, int], run: Run, schema: Any
) -> None:
    alone = Run(model)
    for one in (run, alone):
        one.add(2)
    try:
        run.add(1, json_schema=json.dumps(schema), max_tokens=40)
    except RequestError as error:
        assert error.field == "response_format"
    assert run.finish()[2] == alone.finish()[2]


def test_a_model_without_an_end_token_has_no_grammars(model: tuple[CoreExecutor, Tokenizer, int]) -> None:
    with pytest.raises(RequestError, match="end token"):
        Grammars(model[1], model[2], ())


def test_a_vocabulary_padded_beyond_the_tokenizer(model: tuple[CoreExecutor, Tokenizer, int]) -> None:
    _, tokenizer, vocab = model
    matcher = Grammars(tokenizer, vocab + 70, tokenizer.eos_ids).matcher(SCHEMA)
    mask = np.full(-(-(vocab + 70) // 32), 0xFFFFFFFF, np.uint32)
    matcher.allow(mask)
    allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    assert allowed and {tokenizer.token_text(token)[0] for token in allowed} == {"{"}
