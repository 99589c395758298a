"""What the page for those who run clusters says about both, the operator and the server."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/cluster.md").read_text()


def test_metrics_of_the_server_named_in_alerts_exist() -> None:
    named = {name for name in re.findall(r"\boarlock_[a-z_]+", PAGE) if not name.startswith("oarlock_operator_")}
    sources = [file.read_text() for file in (ROOT / "runtime/oarlock_runtime/server").glob("*.py")]
    made = {name for text in sources for name in re.findall(r'"(oarlock_[a-z_]+)"', text)}
    assert len(named) > 5 and not {name.removesuffix("_total") for name in named} - made
