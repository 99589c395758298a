"""Damaged and hostile directories: any bytes give tensors, or an error that names a file."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.paddle_files import paddle_directory
from support.tiny import tiny_checkpoint

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.paddle.parts import Scheme

FILES = ("config.json", "model.json", "model.pdmodel", "model.pdiparams")
KINDS = ("flip", "cut", "insert", "repeat")
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(("flip", "cut", "insert", "repeat")), st.binary(min_size=1, max_size=12)
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def originals() -> dict[str, bytes]:
    """The files of a small quantized model, its program in both forms."""
    with tempfile.TemporaryDirectory() as folder:
        source = tiny_checkpoint(Path(folder), "qwen2", "bf16", num_hidden_layers=1)
        for pir in (True, False):
            out = paddle_directory(Path(folder) / "out", source, Scheme("bf16", "weight_only_int4"), pir=pir)
        return {name: (out / name).read_bytes() for name in FILES}


def edited(content: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for share, kind, with_bytes in edits:
        # Half of the places lie in the first bytes, where the headers are.
        at = int((2 * share - 1) * len(content)) if share >= 0.5 else int(share * 2 * min(len(content), 400))
        rest = {
            "flip": with_bytes + content[at + len(with_bytes) :],
            "cut": b"" if len(with_bytes) > 6 else content[at + len(with_bytes) :],
            "insert": with_bytes + content[at:],
            "repeat": content[at:] + content[at : at + 50],
        }[kind]
        content = content[:at] + rest
    return content


@pytest.mark.conformance(31)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(file=st.sampled_from(FILES), edits=EDITS)
@example(file="model.json", edits=[(0.0, "insert", b"[[[[")])
def test_mutated_files_end_in_an_error_that_names_one(
    originals: dict[str, bytes], file: str, edits: list[tuple[float, str, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in originals.items():
            if name != ("model.pdmodel" if file == "model.json" else "model.json"):
                (Path(folder) / name).write_bytes(edited(content, edits) if name == file else content)
        try:
            for _, ref in open_checkpoint(folder).tensors():
                ref.read()
        except CheckpointError as error:
            assert str(error).startswith(folder) and any(name in str(error) for name in FILES), error
