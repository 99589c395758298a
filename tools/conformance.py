"""Writes the table of docs/paddle.md: what a server that replaces PaddleNLP's must do, and which tests show it.

A test shows a point by its mark, `@pytest.mark.conformance(9)`, or several numbers. A point passes when there are tests
with its number, all of which run with `make test`, and nothing in MISSING speaks against it; MISSING holds what of a
point is not there, and why. Run by `make docs`; a test holds the page to its tests.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/paddle.md"
FOLDERS = ("runtime/tests", "operator/tests", "e2e/tests")
BEGIN, END = "<!-- conformance: begin (written by tools/conformance.py) -->", "<!-- conformance: end -->"

_LIST = """
1 `start_server [model]` starts the server, returns at once with 0; `stop_server [seconds]` drains, then kills,
   returns 0
2 a busy port is named on standard output, exit code 1, nothing started
3 the older names of the port variables are read, and win over the newer ones
4 with nothing set `start_server` has PaddleNLP's effective defaults; every variable is accepted; unknown `FLAGS_*`
   are passed over
5 MP_NUM not a multiple of MP_NNODE, BATCH_SIZE over 256, MAX_PREFILL_BATCH or PUSH_MODE_HTTP_WORKERS under 1, an
   unknown DEVICE: no start, and a clear message
6 keys of `config.json` override the environment, limits are clamped with a warning, absent keys harm nothing
7 block arithmetic as PaddleNLP's, to the block
8 no file of another process in /dev/shm is ever deleted
9 `{"text": …}` gets `result`, `error_msg`, `error_code` (and `tokens_all`); with `return_usage` also `usage`
10 streams are one JSON object a line; `send_idx` from 0, one `is_end` frame, which is the last and holds the whole;
   tokens joined are the whole
11 errors are HTTP 200 with `error_msg` and `error_code`, in PaddleNLP's words
12 a body of /v1/chat/completions is private by a field of its own or by lacking `model`, else OpenAI's; switchable
   to always private
13 a missing `req_id` is made; one that is live already is refused without harm to the first
14 `timeout` ends a request and frees its blocks
15 both OpenAI URL families and the models list; the official client works with either base URL
16 `[DONE]` comes last; finish_reason is null until the end; whole answers are JSON objects; usage comes once
17 temperature 0 and top_p 0 are greedy; `stop` is text; `n`, `logprobs`, `seed`, `tools`, `response_format` work or
   are refused
18 gRPC: ModelStreamInfer on `model`, IN and OUT, a list of one in and out, a bare object for errors, many requests
   on one stream, a final flag
19 gRPC: the same checks, req_id may be a number, live, ready and metadata answer; not ready while loading
20 the request after MAX_CACHED_TASK_NUM waiting ones is refused in PaddleNLP's words
21 first in, first out, at most MAX_PREFILL_BATCH new a round and BATCH_SIZE at once; preemption changes no greedy
   answer
22 an answer ends at an end token, at max_dec_len or at a stop sequence, each request at its own; min_dec_len holds
   end tokens off
23 prompts over the limits are refused in PaddleNLP's words; cut only with `--strict-paddle`, never by its last
   token alone
24 the same seed gives the same answer; `infer_seed` is echoed
25 /v2/health/ready is 200 only while the engine serves, else 500 with code 1, 2 or 3; live holds while loading,
   unless strict
26 a killed rank makes ready fail in time, and running requests get an error
27 /metrics has the five `inference_server_metrics` series, kept fresh, and time to first token, per token, queue
   and token counters
28 `log/server.log` and `log/workerlog.N` exist
29 `download_model.py`: flags, addresses, lists, checksums, resume, another base URL; a failure is an exit code
30 every name of the catalogue resolves to the right part
31 `model.json` and `model.pdiparams`, at the root or by rank; a wrong size names the parameter
32 fp16, bf16, weight_only_int8 and weight_only_int4 (both packings) of llama and qwen2 graphs run; dequantized
   weights match to a rounding step
33 a directory can be written that PaddleNLP takes
36 USE_WARMUP=1 warms up before the server is ready
"""
POINTS = {
    int(number): " ".join(asks.split())
    for number, asks in re.findall(r"^(\d+) (.*?)(?=^\d|\Z)", _LIST, re.MULTILINE | re.DOTALL)
}

MISSING: dict[int, str] = {
    32: "a8w8, c8 and fp8 weights and mixtral, qwen2_moe and deepseek graphs are recognised and refused by name",
    33: "names, packings, keys and ranks are PaddleNLP's, and Paddle runs the graph; but it goes from tokens to "
    "logits, and PaddleNLP's server feeds graphs that hold its own fused operators and sampling",
}


def shown() -> dict[int, set[str]]:
    """Point to the files with tests of it."""
    found: dict[int, set[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                for point in {point for mark in _marks(node) for point in mark}:
                    found.setdefault(point, set()).add(str(path.relative_to(ROOT)))
    return found


def _marks(node: ast.AST) -> list[list[int]]:
    """The points of a test function's or class's decorators."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return []
    calls = [mark for mark in node.decorator_list if isinstance(mark, ast.Call)]
    return [
        [ast.literal_eval(argument) for argument in call.args]
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.conformance"
    ]


def table() -> str:
    """The table in Markdown."""
    tests = shown()
    unknown = sorted(set(tests) - set(POINTS))
    if unknown:
        raise SystemExit(f"conformance marks name points that are not in the list: {unknown}")
    lines = ["| | point | result | tests |", "|---|---|---|---|"]
    for point, asks in POINTS.items():
        files = tests.get(point, set())
        result = MISSING.get(point, "") or ("pass" if files else "no test shows it")
        if files and point in MISSING:
            result = f"in part: {result}"
        where = ", ".join(f"[{Path(file).stem}](../{file})" for file in sorted(files))
        lines.append(f"| {point} | {asks} | {result} | {where} |")
    return "\n".join(lines)


def page() -> str:
    """docs/paddle.md with its table as it should be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
