"""The table of docs/paddle.md is what the tests' marks make of it (`make docs` writes it)."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools/conformance.py"


def test_the_table_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    assert spec is not None and spec.loader is not None
    conformance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conformance)
    assert len(conformance.POINTS) == 34
    assert conformance.page() == conformance.PAGE.read_text()
