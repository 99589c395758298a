"""`oarlock bench host`: the engine's own work in a step, without a model (engine/hostbench.py)."""

from oarlock_runtime.cli.arguments import Parser, integer, integers


def run(arguments: list[str]) -> int:
    flags = Parser("bench host", "Measures the engine's work on the host in a decode step, beside its budget.")
    flags.add_argument("--sequences", type=integers(1, 4096), default=[1, 64, 1024], help="default 1,64,1024")
    flags.add_argument("--steps", type=integer(1, 100000), default=500, help="timed steps (default 500)")
    values = flags.read(arguments[1:])
    from oarlock_runtime.engine import hostbench

    hostbench.run(values.sequences, values.steps)
    return 0
