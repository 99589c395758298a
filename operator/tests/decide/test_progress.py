"""What a log line of a download tells."""

import pytest

from oarlock_operator.decide.progress import progress_from
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
