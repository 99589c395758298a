"""The pages of documentation name files, functions and fields that exist."""

import re
from pathlib import Path

import msgspec
import pytest

from oarlock_runtime.server.http.fields import REFUSED, ChatFields, CompletionFields

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUNTIME = ROOT / "runtime/oarlock_runtime"
JOURNEYS = pytest.mark.parametrize(  # `least`: files that the page names, and ten more names
    ("page", "package", "least"),
    [("request.md", RUNTIME, 20), ("ranks.md", RUNTIME, 14), ("deployment.md", ROOT / "operator/oarlock_operator", 20)],
)


def quoted(page: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", page.read_text()))


@JOURNEYS
def test_files_named_in_a_journey_exist(page: str, package: Path, least: int) -> None:
    paths = {text for text in quoted(DOCS / page) if re.fullmatch(r"[\w/]+(\.(py|cpp|h)|/\w+)", text)}
    assert len(paths) > least
    missing = [path for path in paths if not any((root / path).exists() for root in (ROOT, package, RUNTIME))]
    assert not missing


@JOURNEYS
def test_names_in_a_journey_exist(page: str, package: Path, least: int) -> None:
    sources = [*package.rglob("*.py"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cpp")]
    text = "\n".join(file.read_text() for file in sources)
    names = {name for name in quoted(DOCS / page) if re.fullmatch(r"[A-Za-z_]\w*((\.|::)\w+)*", name)}
    parts = {part for name in names for part in re.split(r"\.|::", name)}
    assert len(parts) > least + 10
    missing = [part for part in parts if not re.search(rf"\b{part}\b", text)]
    assert not missing


@pytest.mark.parametrize("kind", [ChatFields, CompletionFields])
def test_every_field_of_the_api_is_on_its_page(kind: type[msgspec.Struct]) -> None:
    names = quoted(DOCS / "api.md")
    assert not [name for name in kind.__struct_fields__ if name not in names]


def test_every_refused_field_is_on_its_page() -> None:
    assert not set(REFUSED) - quoted(DOCS / "api.md")


PAGES = [ROOT / "README.md", ROOT / "charts/oarlock/README.md", *sorted(DOCS.glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
