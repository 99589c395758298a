"""The command line: what it prints, and its one-line errors."""

from pathlib import Path

import pytest
import yaml
from kubernetes.aio.config import kube_config

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
        ("a: [", "md.yaml: line 1, column 5: expected"),
        ("", "0 documents"),
        ("apiVersion: serving.oarlock.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: x}\n", "spec.model"),
    ],
)
def test_bad_files(text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "md.yaml"
    file.write_text(text)
    assert main(["render", str(file)]) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.startswith("oarlock-operator: ") and said.count("\n") == 1


def test_a_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "md.yaml"
    file.write_bytes(b"\x9d\xff")
    assert main(["render", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"oarlock-operator: {file}: is no text")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["render", str(EXAMPLES[0]), "--max-sequences", "4"], "--set FIELD=VALUE"),
        (["render", str(EXAMPLES[0]), "--network-polcy"], "did you mean --network-policy?"),
        (["local", str(EXAMPLES[0]), "--port", "99999"], "'99999' is no port from 0 to 65535"),
        (["lcoal"], "invalid choice: 'lcoal'"),
        (["run", "--lease", "x"], "unknown argument '--lease'"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and complaint in said
    assert said.startswith("oarlock-operator: ") and said.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "release"])
def test_no_cluster(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent"))
    assert main([command, *(["--port", "0", "--host", "127.0.0.1"] if command == "run" else [])]) == 1
    assert capsys.readouterr().err.startswith("oarlock-operator: no cluster: ")


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "/nowhere.yaml"]) == 1
    assert capsys.readouterr().err == "oarlock-operator: /nowhere.yaml: No such file or directory\n"
