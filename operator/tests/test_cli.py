"""The command line: what it prints, and its one-line errors."""

from pathlib import Path

import pytest
import yaml

from oarlock_operator.cli.main import main

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_render(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(example)]) == 0
    kinds = [found["kind"] for found in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds[:3] == ["Service", "Service", "PodDisruptionBudget"] and "Pod" in kinds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: Pod", "apiVersion and kind must be"),
        ("a: [", "expected"),
        ("", "0 documents"),
        ("apiVersion: serving.oarlock.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: x}\n", "spec.model"),
    ],
)
def test_bad_files(text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "md.yaml"
    file.write_text(text)
    assert main(["render", str(file)]) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.startswith("error: ")


def test_settings_of_the_server_are_fields_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", str(EXAMPLES[0]), "--max-sequences", "4"])
    assert "--set FIELD=VALUE" in capsys.readouterr().err


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "/nowhere.yaml"]) == 1
    assert "/nowhere.yaml" in capsys.readouterr().err
