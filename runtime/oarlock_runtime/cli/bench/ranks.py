"""`oarlock bench ranks`: what it costs a decode step that a model is split over processes of this machine.

The whole model with all threads and the split one, whose ranks share the same threads, take turns in one run, so that
both see the machine alike. What the split one loses is the price of the wire, which is shown beside it.
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
from oarlock_runtime.cli.bench.steps import each_step, step_plan, time_steps
from oarlock_runtime.cli.terminal import say, table
from oarlock_runtime.engine.executor import CoreExecutor, load_executor, usable_threads
from oarlock_runtime.engine.local_ranks import SplitModel, split_model
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
    plan = step_plan(vocab, batch, 1, flags.context)
    alone: list[float] = []
    together: list[float] = []
    ratios = []
    spent = 0.0
    for _ in range(flags.rounds):
        one = time_steps(whole, plan, flags.steps)
        each_step(split.executor, plan, 3)  # the other ranks wake
        before = split.comm.seconds
        many = each_step(split.executor, plan, flags.steps)
        spent += split.comm.seconds - before
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
    if flags.device != "cpu":
        raise SettingError(f"--device {flags.device}: a model is split over ranks on a CPU alone")
    if threads % flags.ranks:
        raise SettingError(f"--threads {threads} can't be shared evenly by --ranks {flags.ranks}")
    say(f"one rank with {threads} threads, {flags.ranks} ranks with {threads // flags.ranks} each, {_C.isa()}")
    sizes = {"sequences": max(flags.batch), "context": flags.context, "step_tokens": max(flags.batch)}
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
        "Times decode steps of a model split over processes of this machine beside those of the whole one.",
    )
    flags.add_argument("--model", required=True, help=MODEL_HELP)
    flags.add_argument("--ranks", type=integer(2, 64), default=2, help="that share the threads (default 2)")
    execution_flags(flags)
    flags.add_argument("--batch", type=integers(1, 4096), default=[1, 32], help="sequences (default 1,32)")
    flags.add_argument("--context", type=integer(1), default=256, help="tokens of each sequence (default 256)")
    flags.add_argument("--steps", type=integer(1, 9999), default=11, help="timed steps of a turn (default 11)")
    flags.add_argument("--rounds", type=integer(1, 999), default=5, help="turns of each (default 5)")
    flags.add_argument("--json", default="", metavar="FILE", help="write the figures to a file")
    return flags


def run(arguments: list[str]) -> int:
    flags = parser().read(arguments[1:])
    measured = list(measure_all(flags))
    table(
        f"Decode over {flags.ranks} ranks; throughput = split over whole; exchanges = rank 0's, waiting included",
        COLUMNS,
        rows(measured),
    )
    if flags.json:
        write_json(flags.json, vars(flags), [vars(figures) for figures in measured])
    return 0
