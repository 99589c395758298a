"""The pages for operators of clusters tell of every condition's reason and every event there can be."""

import ast
import re
from pathlib import Path
from typing import get_args

from oarlock_operator.api.server import Server
from oarlock_operator.api.status import ConditionType
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.decide.report import _TOLD_OF_READY

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/cluster.md", ROOT / "charts/oarlock/README.md"]
DECIDE = ROOT / "operator/oarlock_operator/decide"


def words(*pages: Path) -> set[str]:
    return {word for page in pages for word in re.findall(r"\w+", page.read_text())}


def test_every_condition_and_its_reasons_are_told() -> None:
    tree = ast.parse((DECIDE / "conditions.py").read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    reasons = {text for text in texts if re.fullmatch(r"([A-Z][a-z]+)+", text)}
    reasons -= {"True", "False", "Unknown", "Pending", "Pulling"}  # statuses, and states that are no reasons
    assert len(reasons) > 25 and set(get_args(ConditionType)) <= reasons
    assert not reasons - words(*PAGES)


def test_every_event_is_told() -> None:
    text = "".join(file.read_text() for file in DECIDE.glob("*.py"))
    events = set(re.findall(r'Event\("(\w+)"', text)) | set(_TOLD_OF_READY)
    assert len(events) > 13
    assert not events - words(*PAGES)


def test_every_metric_of_the_operator_is_told() -> None:
    text = "".join(page.read_text() for page in PAGES)
    names = {metric.name.removeprefix("oarlock_operator") for metric in Metrics().registry.collect()}
    assert len(names) > 8
    assert not [name for name in names if name not in text]


def test_fields_named_on_the_page_exist() -> None:
    fields = {info.alias for info in Server.model_fields.values()}
    named = set(re.findall(r"`server\.(\w+)`", PAGES[0].read_text()))
    assert named and not named - fields
