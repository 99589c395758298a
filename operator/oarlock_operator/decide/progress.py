"""How far the model is fetched: read from the last lines of a member's log, and added up over all that are at it."""

import re
from collections.abc import Mapping

from oarlock_operator.api.status import DownloadProgress
from oarlock_operator.decide.snapshot import Progress

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_FACTORS = {"B": 1} | {unit: factor for factor, unit in _UNITS}
_LINE = re.compile(
    r": ([\d.]+) ([KMGT]?i?B)(?: of ([\d.]+) ([KMGT]?i?B) \(\d+%\))?(?:, ([\d.]+) ([KMGT]?i?B)/s)?(?: \(.*\))?$"
)


def progress_from(log: str) -> Progress | None:
    """The last line of a download that has numbers: `downloading model.gguf: 12.0 MiB of 96.0 MiB (12%), 5.0 MiB/s`."""
    for line in reversed(log.splitlines()):
        if match := _LINE.search(line.strip()):
            done, total, rate = (_bytes(match[i], match[i + 1]) for i in (1, 3, 5))
            return Progress(done or 0, total, rate)
    return None


def _bytes(number: str | None, unit: str | None) -> int | None:
    return int(float(number) * _FACTORS.get(unit or "B", 1)) if number is not None else None


def download_progress(by_pod: Mapping[str, Progress]) -> DownloadProgress | None:
    """The sum of all, and the member that will be last. None when nothing is known of anybody."""
    if not by_pod:
        return None
    done = sum(one.bytes for one in by_pod.values())
    totals = [one.total for one in by_pod.values()]
    rates = [one.rate for one in by_pod.values() if one.rate is not None]
    total = sum(one for one in totals if one is not None) if None not in totals else None
    waits = {name: _remaining(one) for name, one in by_pod.items()}
    # One that stands still, or doesn't know how far it has to go, may take longer than any that do.
    slowest = max(by_pod, key=lambda name: (waits[name] is None, waits[name] or 0, -by_pod[name].bytes, name))
    rate = sum(rates) if rates else None
    remaining = waits[slowest]
    return DownloadProgress(
        bytes=done,
        total=total,
        rate=rate,
        remaining_seconds=remaining,
        slowest_member=slowest,
        summary=_summary(done, total, rate, remaining),
    )


def _remaining(one: Progress) -> int | None:
    """Seconds until it is through; None when that can't be told."""
    if one.total is not None and one.bytes >= one.total:
        return 0
    if one.total is None or not one.rate:
        return None
    return (one.total - one.bytes) // one.rate


def _summary(done: int, total: int | None, rate: int | None, remaining: int | None) -> str:
    parts = [f"{100 * done // total}% of {size(total)}" if total else size(done)]
    if rate:
        parts.append(f"{size(rate)}/s")
    if remaining is not None:
        parts.append(f"{remaining} s left")
    return ", ".join(parts)


def size(count: int) -> str:
    """A number of bytes for people."""
    for factor, unit in _UNITS:
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
