"""`oarlock bench ranks`: what it costs, or gains, a step that a model is split over processes of this machine.

The whole model and the split one take turns in one run, so that both see the machine alike. On a CPU the whole one has
all threads, which the ranks of the split one share: what that loses is the price of the wire. On GPUs the whole one has
the first and every rank its own: what is gained is what the wire leaves of that. The time in exchanges is shown, too.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from oarlock_runtime import _C
from oarlock_runtime.cli.arguments import MODEL_HELP, Parser, integer, integers
from oarlock_runtime.cli.bench.execution import execution_flags
from oarlock_runtime.cli.bench.inprocess import checkpoint_of, options_of
from oarlock_runtime.cli.bench.report import write_json
from oarlock_runtime.cli.bench.steps import each_overlapped_step, step_plan
from oarlock_runtime.cli.terminal import say, table
from oarlock_runtime.engine.executor import CoreExecutor, load_executor, usable_threads
from oarlock_runtime.engine.local_ranks import SplitModel, split_model
from oarlock_runtime.engine.ranks import require_devices
from oarlock_runtime.errors import SettingError

COLUMNS = ("quantization", "batch", "one rank ms", "split ms", "throughput", "exchanges ms", "share", "tok/s")


@dataclass(frozen=True)
class RankFigures:
    """Decode steps of the whole and of the split model, in seconds.

    `whole` and `split` are medians of all steps, `ratio` is the median over rounds of the split model's throughput over
    the whole one's, `exchanges` the mean time of a step that rank 0 spends in exchanges, waiting for other ranks
    included, and `share` what that is of the step.
    """

    quantization: str
    ranks: int
    batch: int
    whole: float
    split: float
    ratio: float
    exchanges: float
    share: float


def measure(
    whole: CoreExecutor, split: SplitModel, quantization: str, vocab: int, batch: int, flags: argparse.Namespace
) -> RankFigures:
    """`flags.rounds` rounds of `flags.steps` steps of each, in turn."""
    plan = step_plan(vocab, batch, flags.tokens, flags.context)
    alone: list[float] = []
    together: list[float] = []
    ratios = []
    spent = 0.0
    for _ in range(flags.rounds):
        each_overlapped_step(whole, plan, 3)
        one = each_overlapped_step(whole, plan, flags.steps)
        each_overlapped_step(split.executor, plan, 3)  # the other ranks wake
        before = split.exchange_seconds
        many = each_overlapped_step(split.executor, plan, flags.steps)
        # The last of overlapping steps is not timed.
        spent += (split.exchange_seconds - before) * flags.steps / (flags.steps + split.executor.overlap)
        ratios.append(statistics.median(one) / statistics.median(many))
        alone += one
        together += many
    return RankFigures(
        quantization,
        flags.ranks,
        batch,
        statistics.median(alone),
        statistics.median(together),
        statistics.median(ratios),
        spent / len(together),
        spent / sum(together),
    )


def measure_all(flags: argparse.Namespace) -> Iterator[RankFigures]:
    """Every batch under every quantization."""
    checkpoint = checkpoint_of(flags.model, flags.load_format)
    threads = flags.threads or usable_threads()
    if flags.device == "cuda":
        require_devices(flags.ranks, f"--ranks {flags.ranks}")
        say(f"one GPU, and {flags.ranks}")
    elif threads % flags.ranks:
        raise SettingError(f"--threads {threads} can't be shared evenly by --ranks {flags.ranks}")
    else:
        say(f"one rank with {threads} threads, {flags.ranks} ranks with {threads // flags.ranks} each, {_C.isa()}")
    if flags.tokens > flags.context:
        raise SettingError(f"--tokens {flags.tokens} don't fit --context {flags.context}")
    largest = max(flags.batch)
    sizes = {"sequences": largest, "context": flags.context, "step_tokens": largest * flags.tokens}
    for quantization in flags.quantization:
        options = replace(options_of(checkpoint, flags, quantization, **sizes), threads=threads)
        whole = load_executor(checkpoint, options)
        opened = partial(checkpoint_of, flags.model, flags.load_format)
        with split_model(opened, replace(options, threads=threads // flags.ranks), flags.ranks) as split:
            for batch in flags.batch:
                yield measure(whole, split, quantization, checkpoint.spec.vocab, batch, flags)


def rows(measured: Sequence[RankFigures]) -> list[list[str]]:
    return [
        [
            figures.quantization,
            f"{figures.batch}",
            f"{1000 * figures.whole:.2f}",
            f"{1000 * figures.split:.2f}",
            f"{figures.ratio:.2f}",
            f"{1000 * figures.exchanges:.2f}",
            f"{figures.share:.0%}",
            f"{figures.batch / figures.split:.1f}",
        ]
        for figures in measured
    ]


def parser() -> Parser:
    flags = Parser(
        "bench ranks",
        "Times steps of a model split over processes of this machine, or over its GPUs, beside those of the whole one.",
    )
    flags.add_argument("--model", required=True, help=MODEL_HELP)
    flags.add_argument(
        "--ranks", type=integer(2, 64), default=2, help="that share the threads, or have a GPU each (default 2)"
    )
    execution_flags(flags)
    flags.add_argument("--batch", type=integers(1, 4096), default=[1, 32], help="sequences (default 1,32)")
    flags.add_argument("--context", type=integer(1), default=256, help="tokens of each sequence (default 256)")
    flags.add_argument(
        "--tokens", type=integer(1), default=1, help="of each sequence that a step computes, 1 is decoding (default 1)"
    )
    flags.add_argument("--steps", type=integer(1, 9999), default=11, help="timed steps of a turn (default 11)")
    flags.add_argument("--rounds", type=integer(1, 999), default=5, help="turns of each (default 5)")
    flags.add_argument("--json", default="", metavar="FILE", help="write the figures to a file")
    return flags


def run(arguments: list[str]) -> int:
    flags = parser().read(arguments[1:])
    measured = list(measure_all(flags))
    table(
        f"A step over {flags.ranks} ranks; throughput = split over whole; exchanges = rank 0's, waiting included",
        COLUMNS,
        rows(measured),
    )
    if flags.json:
        write_json(flags.json, vars(flags), [vars(figures) for figures in measured])
    return 0
