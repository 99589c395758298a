"""`oarlock bench table`, behind `make bench`: this machine's floor and what core and engine make of it, in one go."""

from collections.abc import Sequence

from oarlock_runtime.cli.arguments import MODEL_HELP, Parser
from oarlock_runtime.cli.bench import floor, host, serving, steps
from oarlock_runtime.cli.terminal import say


def sections(model: str, quantizations: str) -> Sequence[tuple[str, list[str]]]:
    """Each bench's arguments, so that a reader can run any one of them alone."""
    held = ["--model", model, "--quantization", quantizations]
    return (
        ("floor", ["floor", "--model", model]),
        ("decode", ["decode", *held, "--batch", "1,8,32"]),
        ("prefill", ["prefill", *held, "--tokens", "128,1024"]),
        ("host", ["host"]),
        ("serving", [*held, "--input", "256", "--output", "64", "--concurrency", "1,8,32", "--repeats", "1"]),
    )


def run(arguments: list[str]) -> int:
    flags = Parser("bench table", "Measures floor, decode, prefill, host work and serving in process.")
    flags.add_argument("--model", required=True, help=MODEL_HELP)
    flags.add_argument("--quantization", default="bf16,int8,int4", help="default bf16,int8,int4")
    values = flags.read(arguments[1:])
    benches = {"floor": floor.run, "decode": steps.run, "prefill": steps.run, "host": host.run, "serving": serving.run}
    for name, words in sections(values.model, values.quantization):
        print(flush=True)
        say(f"oarlock bench {' '.join(words)}")
        code = benches[name](words)
        if code:
            return code
    return 0
