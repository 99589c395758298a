"""The load generator against a small server: lengths, counting, comparison, errors."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from support.openai_server import fake_server
from support.scripted_api import scripted_api
from support.tiny import tiny_directory

from oarlock_runtime.cli.bench import report
from oarlock_runtime.cli.bench.client import Endpoint, Trace
from oarlock_runtime.cli.bench.dialects import DIALECTS
from oarlock_runtime.cli.bench.load import Load, offer
from oarlock_runtime.cli.bench.workload import Ask, Workload, draw, length, single_words, text_of
from oarlock_runtime.cli.dispatch import main
from oarlock_runtime.models.tokenizer import load_tokenizer


def test_prompts_have_the_lengths_asked_for_and_share_the_prefix() -> None:
    asks = draw(Workload(input=20, output=7, prefix=5), 4, "seed")
    assert {len(ask.prompt) for ask in asks} == {25}
    assert {ask.output for ask in asks} == {7}
    assert len({tuple(ask.prompt[:5]) for ask in asks}) == 1
    assert len({tuple(ask.prompt[5:]) for ask in asks}) == 4
    assert asks == draw(Workload(input=20, output=7, prefix=5), 4, "seed")
    assert asks != draw(Workload(input=20, output=7, prefix=5), 4, "other")


def test_lognormal_lengths_keep_their_mean() -> None:
    import random

    dice = random.Random(1)
    drawn = [length(200, 0.5, dice) for _ in range(4000)]
    assert abs(sum(drawn) / len(drawn) - 200) < 10
    assert 1 <= min(drawn) < 100 < 300 < max(drawn) <= 800


@pytest.mark.parametrize("split", [0, 1, 7, 50])
def test_tokens_are_counted_however_the_bytes_are_cut(split: int) -> None:
    with fake_server() as server:
        server.split = split
        server.usage = False
        trace = asyncio.run(Endpoint(server.url).complete(b'{"max_tokens": 9, "stream": true}'))
    assert trace.error == ""
    assert trace.output_tokens == 9
    assert 0 < trace.first <= trace.total


def test_usage_counts_tokens_where_the_server_sends_it() -> None:
    body = {"prompt": [1] * 33, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    with fake_server() as server:
        trace = asyncio.run(Endpoint(server.url).complete(json.dumps(body).encode()))
    assert (trace.output_tokens, trace.prompt_tokens) == (5, 33)


def test_errors_are_in_the_trace() -> None:
    with fake_server() as server:
        server.refuse = 400
        trace = asyncio.run(Endpoint(server.url).complete(b"{}"))
        assert trace.error == 'status 400: no "such" thing'
        server.refuse, server.cut = 0, 2
        assert asyncio.run(Endpoint(server.url).complete(b"{}")).error == "the server ended the stream early"
    assert asyncio.run(Endpoint(server.url).complete(b"{}")).error


def test_private_requests_are_measured_alike(tmp_path: Path) -> None:
    ask = Ask([5] * 33, 12)
    with scripted_api(load_tokenizer(tiny_directory(tmp_path, "llama"))) as api:
        for name, dialect in DIALECTS.items():
            endpoint = Endpoint(api.url, dialect=name)
            trace = asyncio.run(endpoint.complete(dialect.body(ask, "default", ask.prompt, {})))
            assert (trace.error, trace.output_tokens, trace.prompt_tokens) == ("", 12, 33)
            assert 0 < trace.first <= trace.total
        refused = asyncio.run(Endpoint(api.url, dialect="private").complete(b'{"text":"","stream":true}'))
        assert refused.error


def test_closed_load_keeps_so_many_in_flight() -> None:
    now = highest = 0

    async def send(body: bytes) -> Trace:
        nonlocal now, highest
        now += 1
        highest = max(highest, now)
        await asyncio.sleep(0.001)
        now -= 1
        return Trace(output_tokens=1)

    traces, seconds = asyncio.run(offer(Load(3), [b""] * 10, send, "s"))
    assert (len(traces), highest) == (10, 3)
    assert seconds > 0


def test_poisson_load_sends_without_waiting_for_answers() -> None:
    starts: list[float] = []

    async def send(body: bytes) -> Trace:
        starts.append(time.perf_counter())
        await asyncio.sleep(0.05)
        return Trace(output_tokens=1)

    traces, _ = asyncio.run(offer(Load(rate=1000.0), [b""] * 20, send, "s"))
    assert len(traces) == 20
    assert starts == sorted(starts)


def test_percentiles_medians_and_ratio() -> None:
    assert report.percentiles([]) == (0.0, 0.0, 0.0)
    assert report.percentiles([float(value) for value in range(1, 101)]) == (50.0, 90.0, 99.0)
    traces = [Trace(prompt_tokens=10, output_tokens=5, first=0.1, total=0.5) for _ in range(4)]
    run = report.figures([*traces, Trace(error="no")], 2.0, 25)
    assert (run.ok, run.failed, run.output_rate, run.total_rate) == (4, 1, 10.0, 30.0)
    assert run.per_token[0] == pytest.approx(0.1)
    faster = report.figures(traces, 1.0, 20)
    assert report.ratio([faster, run, faster], [run, run, faster]) == 1.0
    assert report.medians([run, faster, faster]).output_rate == 20.0


def test_two_servers_are_compared_with_the_same_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as one, fake_server() as two:
        arguments = [
            "bench",
            "--url",
            one.url,
            "--url",
            two.url + "/v1",
            "--input",
            "6",
            "--output",
            "4",
            "--repeats",
            "2",
        ]
        code = main([*arguments, "--concurrency", "1,2", "--json", str(tmp_path / "out.json"), "--api-key", "sesame"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out.count("ratio") == 2
    assert "4 in, " not in printed.out and "6 in, 4 out" in printed.out
    prompts = [sorted(str(request["prompt"]) for request in server.requests) for server in (one, two)]
    assert prompts[0] == prompts[1] and len(set(prompts[0])) == len(prompts[0])
    assert {request["model"] for request in one.requests} == {"fake-model"}
    assert all(request["ignore_eos"] and request["path"] == "/v1/completions" for request in one.requests)
    assert one.headers[0]["Authorization"] == "Bearer sesame"
    saved = json.loads((tmp_path / "out.json").read_text())
    assert "sesame" not in str(saved)
    assert len(saved["results"]) == 4 and len(saved["results"][0]["runs"]) == 2
    assert saved["results"][0]["runs"][0]["ok"] == 4


def test_a_server_that_refuses_everything_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        server.refuse = 401
        assert main(["bench", "--url", server.url]) == 1
    assert 'every request failed; the first: status 401: no "such" thing' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --url (a server) or --model"),
        (["--url", "a", "--url", "b", "--url", "c"], "once or twice"),
        (["--url", "a", "--conurrency", "3"], "did you mean '--concurrency'"),
        (["--url", "a", "--concurrency", "0"], "no whole number from 1"),
        (["--url", "a", "--extra", "[]"], "no JSON object"),
    ],
)
def test_wrong_flags_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


class Letters:
    """A tokenizer for tests: id n is a space and a word, except for some that are no plain words."""

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return "".join(" " + "ab"[i % 2] * (i // 2 + 1) if i % 5 else "!" for i in ids)

    def encode(self, text: str, add_special: bool) -> list[int]:
        return [2 * (len(word) - 1) + "ab".index(word[0]) for word in text.split()]


def test_text_prompts_have_exact_lengths() -> None:
    words = Letters()
    vocabulary = single_words(words, 0, 50)
    assert 5 not in vocabulary and 6 in vocabulary
    text = text_of([1000, 2000, 3007], words, vocabulary)
    assert len(words.encode(text, False)) == 3
