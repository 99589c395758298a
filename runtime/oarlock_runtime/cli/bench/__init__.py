"""`oarlock bench`: what a server, a model in process and this machine reach. Each bench is a module of this folder."""

import difflib
import importlib

BENCHES = {
    "floor": "oarlock_runtime.cli.bench.floor",
    "decode": "oarlock_runtime.cli.bench.steps",
    "prefill": "oarlock_runtime.cli.bench.steps",
    "ranks": "oarlock_runtime.cli.bench.ranks",
    "host": "oarlock_runtime.cli.bench.host",
    "front": "oarlock_runtime.cli.bench.front",
    "table": "oarlock_runtime.cli.bench.summary",
}


def run(arguments: list[str]) -> int:
    """`oarlock bench NAME …` runs that bench; anything else is the bench of serving."""
    if arguments and arguments[0] in BENCHES:
        module = importlib.import_module(BENCHES[arguments[0]])
        return int(module.run(arguments))
    from oarlock_runtime.cli.bench import serving
    from oarlock_runtime.cli.dispatch import UsageError

    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], BENCHES, n=1)
        offer = f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(BENCHES)}, or --url or --model"
        raise UsageError(f"no bench {arguments[0]!r}{offer}")
    return serving.run(arguments)
