"""`oarlock bench floor`: what this machine's memory and matrix units give, and the least time that a model needs on it.

No figure of a kernel or a server means anything without these two: bytes a second read from memory, which bound decode,
and operations a second, which bound prefill and large batches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from oarlock_runtime import _C
from oarlock_runtime.cli.arguments import Parser, integer, number
from oarlock_runtime.cli.bench.report import write_json
from oarlock_runtime.cli.terminal import progress, table
from oarlock_runtime.models.loading import Quantization
from oarlock_runtime.models.spec import ModelSpec, tensor_shapes

KINDS = ("bf16", "int8", "f32")
FORMATS: tuple[Quantization, ...] = ("auto", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Machine:
    """What was measured with `threads` threads: bytes a second, and operations a second by kind."""

    isa: str
    threads: int
    bandwidth: float
    rates: dict[str, float]


def measure_machine(threads: int, seconds: float, repeats: int) -> Machine:
    """The best of `repeats` measurements of `seconds` each, the kinds taken in turn."""
    kinds = ("read", *KINDS)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with progress(f"{threads} thread{'s' * (threads > 1)}") as shown:
        for repeat in range(repeats):
            for index, kind in enumerate(kinds):
                measure = _C.read_bandwidth if kind == "read" else None
                rate = measure(threads, seconds) if measure else _C.matrix_rate(kind, threads, seconds)
                found[kind].append(rate)
                shown.update(repeat * len(kinds) + index + 1, repeats * len(kinds), kind)
    # A floor is what the machine can do: a neighbour's traffic makes a sample too low, and nothing makes one too high.
    return Machine(_C.isa(), threads, max(found["read"]), {kind: max(found[kind]) for kind in KINDS})


def matrix_weights(spec: ModelSpec) -> int:
    """Weights of the matrices of all layers, without embedding and head."""
    return sum(
        math.prod(shape)
        for name, shape in tensor_shapes(spec).items()
        if name.startswith("layers.") and len(shape) == 2
    )


def prefill_operations(spec: ModelSpec, tokens: int) -> float:
    """Operations (a multiply and an add are two) of one prompt whose last row alone goes through the head."""
    attention = 2 * spec.layers * spec.heads * spec.head_dim * tokens * (tokens + 1)
    return 2.0 * matrix_weights(spec) * tokens + attention + 2.0 * spec.hidden * spec.vocab


def rows_of(machine: Machine) -> list[list[str]]:
    return [
        [f"{machine.threads}", f"{machine.bandwidth / 1e9:.1f}"] + [f"{machine.rates[k] / 1e12:.3f}" for k in KINDS]
    ]


COLUMNS = ("threads", "read GB/s", "bf16 TFLOP/s", "int8 TOP/s", "f32 TFLOP/s")


def model_rows(
    spec: ModelSpec, step_bytes: Mapping[Quantization, int], machine: Machine, context: int
) -> list[list[str]]:
    """By how weights are held: bytes a decode step reads, the floor at batch 1 and for a prompt of `context` tokens."""
    operations = prefill_operations(spec, context)
    rows = []
    for held, weights in step_bytes.items():
        read = weights + context * spec.kv_bytes_per_token()
        rate = machine.rates["bf16" if held == "bf16" else "int8"]
        rows.append(
            [
                held,
                f"{read / 1e6:.0f}",
                f"{1000 * read / machine.bandwidth:.2f}",
                f"{machine.bandwidth / read:.0f}",
                f"{1000 * operations / rate:.1f}",
            ]
        )
    return rows


def parser() -> Parser:
    flags = Parser("bench floor", "Measures this machine's read bandwidth and matrix rates; with a model, its floor.")
    flags.add_argument("--model", default="", help="a model (path or URI) to state the floor for")
    flags.add_argument("--context", type=integer(1), default=256, help="tokens, for the model's floor (default 256)")
    flags.add_argument("--threads", type=integer(0, 1024), default=0, help="default: 1, and one for each core")
    flags.add_argument("--seconds", type=number(0.01, 60), default=0.5, help="of each measurement (default 0.5)")
    flags.add_argument("--repeats", type=integer(1, 99), default=3, help="of which the best counts (default 3)")
    flags.add_argument("--json", default="", metavar="FILE", help="write the figures to a file")
    return flags


def run(arguments: list[str]) -> int:
    from oarlock_runtime.engine.executor import usable_threads

    flags = parser().read(arguments[1:])
    counts = [flags.threads] if flags.threads else sorted({1, usable_threads()})
    machines = [measure_machine(count, flags.seconds, flags.repeats) for count in counts]
    table(f"This machine ({_C.isa()})", COLUMNS, [row for machine in machines for row in rows_of(machine)])
    if flags.model:
        from oarlock_runtime.cli.bench.inprocess import checkpoint_of
        from oarlock_runtime.models.inspect import report_on

        checkpoint = checkpoint_of(flags.model)
        step_bytes = {name: report_on(checkpoint, name).step_bytes for name in FORMATS}
        title = f"Floor of {checkpoint.path.name}, {flags.context} tokens of context, {counts[-1]} threads"
        columns = ("weights", "MB a step", "ms a step", "tok/s, batch 1", "prompt ms")
        print()
        table(title, columns, model_rows(checkpoint.spec, step_bytes, machines[-1], flags.context))
    if flags.json:
        write_json(flags.json, vars(flags), [vars(machine) for machine in machines])
    return 0
