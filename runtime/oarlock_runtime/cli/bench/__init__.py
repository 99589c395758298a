"""`oarlock bench`: what a server, a model in process and this machine reach. Each bench is a module of this folder."""

import importlib

BENCHES = {
    "floor": "oarlock_runtime.cli.bench.floor",
    "decode": "oarlock_runtime.cli.bench.steps",
    "prefill": "oarlock_runtime.cli.bench.steps",
    "host": "oarlock_runtime.cli.bench.host",
    "table": "oarlock_runtime.cli.bench.summary",
}


def run(arguments: list[str]) -> int:
    """`oarlock bench NAME …` runs that bench; anything else is the bench of serving."""
    if arguments and arguments[0] in BENCHES:
        module = importlib.import_module(BENCHES[arguments[0]])
        return int(module.run(arguments))
    from oarlock_runtime.cli.bench import serving

    return serving.run(arguments)
