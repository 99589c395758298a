"""What a log line of a download tells, and what the members' lines tell together."""

import pytest

from oarlock_operator.decide.progress import download_progress, progress_from
from oarlock_operator.decide.snapshot import Progress


@pytest.mark.parametrize(
    ("text", "progress"),
    [
        ("downloading m.gguf: 12.0 MiB of 96.0 MiB (12%), 2.0 MiB/s", Progress(12 << 20, 96 << 20, 2 << 20)),
        ("downloading m.gguf: 1.5 KiB", Progress(1536)),
        ("retrying m.gguf: 2.0 GiB of 4.0 GiB (50%) (no answer)\n", Progress(2 << 30, 4 << 30)),
        ("downloading a: 1 B of 2 B (50%)\n\nverifying a", Progress(1, 2)),
        ("", None),
        ("error: no such model", None),
    ],
)
def test_progress_lines(text: str, progress: Progress | None) -> None:
    assert progress_from(text) == progress


MIB = 1 << 20


@pytest.mark.parametrize(
    ("by_pod", "slowest", "remaining"),
    [
        ({"a": Progress(MIB, 9 * MIB, MIB), "b": Progress(5 * MIB, 9 * MIB, MIB)}, "a", 8),
        # Who has most to fetch is not the last, if it is quick.
        ({"a": Progress(MIB, 90 * MIB, 30 * MIB), "b": Progress(5 * MIB, 15 * MIB, MIB)}, "b", 10),
        ({"a": Progress(MIB, 9 * MIB, MIB), "b": Progress(9 * MIB, 9 * MIB)}, "a", 8),
        # Nobody knows when one that stands still will be through, nor one that doesn't know how far it has to go.
        ({"a": Progress(8 * MIB, 9 * MIB, 0), "b": Progress(MIB, 9 * MIB, MIB)}, "a", None),
        ({"a": Progress(8 * MIB, None, MIB), "b": Progress(MIB, 9 * MIB, MIB)}, "a", None),
        ({"a": Progress(2 * MIB), "b": Progress(MIB)}, "b", None),
    ],
)
def test_the_slowest_member(by_pod: dict[str, Progress], slowest: str, remaining: int | None) -> None:
    found = download_progress(by_pod)
    assert found is not None
    assert (found.slowest_member, found.remaining_seconds) == (slowest, remaining)


def test_all_members_together() -> None:
    found = download_progress({"a": Progress(MIB, 9 * MIB, MIB), "b": Progress(5 * MIB, 9 * MIB, 3 * MIB)})
    assert found is not None
    assert (found.bytes, found.total, found.rate) == (6 * MIB, 18 * MIB, 4 * MIB)
    assert found.summary == "33% of 18.0 MiB, 4.0 MiB/s, 8 s left"
    assert download_progress({}) is None
