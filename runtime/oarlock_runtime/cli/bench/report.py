"""Figures of a bench: percentiles of one run, medians over repeats, the table and the JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oarlock_runtime.cli.bench.client import Trace

PERCENTILES = (50, 90, 99)
COLUMNS = ("server", "streams", "ok/failed", "out tok/s", "total tok/s", "TTFT ms", "TPOT ms", "E2E s")


@dataclass(frozen=True)
class Figures:
    """One run, or the medians of several. Percentiles are p50, p90, p99; times in seconds, rates in tokens a second."""

    ok: int
    failed: int
    output_rate: float
    total_rate: float
    first: tuple[float, ...]
    per_token: tuple[float, ...]
    whole: tuple[float, ...]
    short: int  # answers with fewer tokens than asked for


def percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """p50, p90 and p99 by nearest rank; zeros when there are no values."""
    ordered = sorted(values)
    if not ordered:
        return (0.0,) * len(PERCENTILES)
    return tuple(ordered[min(len(ordered) - 1, max(0, -(-p * len(ordered) // 100) - 1))] for p in PERCENTILES)


def figures(traces: Sequence[Trace], seconds: float, wanted_tokens: int) -> Figures:
    """The figures of one run of `seconds` in which `wanted_tokens` were asked for altogether."""
    good = [trace for trace in traces if not trace.error]
    output = sum(trace.output_tokens for trace in good)
    prompt = sum(trace.prompt_tokens for trace in good)
    return Figures(
        ok=len(good),
        failed=len(traces) - len(good),
        output_rate=output / seconds,
        total_rate=(output + prompt) / seconds,
        first=percentiles([trace.first for trace in good]),
        per_token=percentiles([trace.per_token for trace in good if trace.output_tokens > 1]),
        whole=percentiles([trace.total for trace in good]),
        short=max(0, wanted_tokens - output) if len(good) == len(traces) else 0,
    )


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure; counts are summed."""

    def middle(name: str) -> tuple[float, ...]:
        return tuple(statistics.median(column) for column in zip(*(getattr(run, name) for run in runs), strict=True))

    return Figures(
        ok=sum(run.ok for run in runs),
        failed=sum(run.failed for run in runs),
        output_rate=statistics.median(run.output_rate for run in runs),
        total_rate=statistics.median(run.total_rate for run in runs),
        first=middle("first"),
        per_token=middle("per_token"),
        whole=middle("whole"),
        short=sum(run.short for run in runs),
    )


def row(server: str, streams: str, runs: Sequence[Figures]) -> list[str]:
    """A line of the table: medians of the runs, and the range of the output rate."""
    shown = medians(runs)
    rates = [run.output_rate for run in runs]
    spread = f" ({min(rates):.0f}-{max(rates):.0f})" if len(runs) > 1 else ""
    return [
        server,
        streams,
        f"{shown.ok}/{shown.failed}",
        f"{shown.output_rate:.1f}{spread}",
        f"{shown.total_rate:.0f}",
        "/".join(f"{1000 * value:.0f}" for value in shown.first),
        "/".join(f"{1000 * value:.1f}" for value in shown.per_token),
        "/".join(f"{value:.2f}" for value in shown.whole),
    ]


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures]) -> float:
    """Median over the repeats of the ratio of output rates: each run is compared with its neighbour in time."""
    pairs = [(a.output_rate, b.output_rate) for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(a / b if b else float("inf") for a, b in pairs)


def ratio_row(streams: str, ours: Sequence[Figures], theirs: Sequence[Figures]) -> list[str]:
    """The line under two servers' lines: the first's figures divided by the second's."""
    a, b = medians(ours), medians(theirs)

    def over(name: str) -> str:
        x, y = getattr(a, name)[0], getattr(b, name)[0]
        return f"x{x / y:.2f}" if y else "-"

    return ["ratio", streams, "", f"x{ratio(ours, theirs):.2f}", "", over("first"), over("per_token"), over("whole")]


def write_json(path: str, setting: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Writes the bench's settings and every run's figures (times in seconds) to a file."""
    Path(path).write_text(json.dumps({"setting": dict(setting), "results": list(results)}, indent=1) + "\n")


def plain(figures: Figures) -> dict[str, Any]:
    """Figures as JSON takes them."""
    return asdict(figures)
