"""The script's frame: help, errors as one line, exit codes, start time of nothing heavy."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from oarlock_runtime.cli import dispatch, settings_page, terminal
from oarlock_runtime.cli.dispatch import COMMANDS, main
from oarlock_runtime.errors import OarlockError

DOCS = Path(__file__).parents[3] / "docs"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert main([]) == 2


def test_the_version_needs_no_installed_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: pytest.fail("looked for the package"))
    assert main(["--version"]) == 0
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"oarlock {project['version']}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, "--help"])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0
    assert f"oarlock {name}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from oarlock_runtime.cli import main; main(['--help']);"
        "print([name for name in ('numpy', 'rich', 'asyncio', 'fastapi', 'oarlock_runtime._C') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_an_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serv"]) == 2
    assert capsys.readouterr().err == "oarlock: no command 'serv'; did you mean 'serve'?\n"


def test_an_unknown_bench_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "flor"]) == 2
    assert capsys.readouterr().err == "oarlock: no bench 'flor'; did you mean 'floor'?\n"


def test_errors_are_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, arguments: list[str]) -> int:
        raise OarlockError("no such\nmodel") if arguments else KeyError("inner")

    monkeypatch.setattr(dispatch, "run_command", fail)
    assert main(["serve", "x"]) == 1
    assert capsys.readouterr().err == "oarlock: no such model\n"
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "oarlock: KeyError: 'inner' (--debug shows where)\n"
    with pytest.raises(KeyError):
        main(["serve", "--debug"])


def test_the_page_of_settings_is_current() -> None:
    assert (DOCS / "settings.md").read_text() == settings_page.page(), "run `make docs`"


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "PIPE_LINE_SECONDS", 0.0)
    with terminal.progress("model", in_bytes=True) as shown:
        shown.update(1 << 20, 4 << 20, "from afar")
    assert capsys.readouterr().err == "model: 1.0 MiB of 4.0 MiB (25%)  from afar\n"


def test_tables_line_up_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table("Title", ["name", "n"], [["a", "1"], ["long name", "100"]])
    assert capsys.readouterr().out == "Title\nname         n\na            1\nlong name  100\n"
