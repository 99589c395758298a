"""tools/bootstrap.py: what each of make's targets sets up and becomes."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


class Became(Exception):
    """What this process would have been replaced by."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plays a target with an environment: (extras, whether checks are built, the command)."""

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools/bootstrap.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def run(*arguments: str, **environment: str) -> tuple[list[str], bool, list[str]]:
        for name in ("MODEL", "CUDA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        module = load()
        prepared: list[tuple[list[str], bool]] = []

        def execv(path: str, command: list[str]) -> None:
            raise Became(Path(command[0]).name, *command[1:])

        monkeypatch.setattr(module, "setup", lambda extras, checks: prepared.append((extras, checks)))
        monkeypatch.setattr(module, "download", lambda: None)
        monkeypatch.setattr(os, "execv", execv)
        monkeypatch.chdir(ROOT)
        with pytest.raises(Became) as became:
            module.main(list(arguments))
        return (*prepared[0], list(became.value.args))

    return run


def test_run_is_the_local_runner(become: Any) -> None:
    extras, checks, command = become("run", "--port", "8000")
    assert command == ["oarlock-operator", "local", "examples/smollm2.yaml", "--port", "8000"]
    assert extras == ["runtime", "operator"] and not checks
    assert (ROOT / command[2]).exists()


def test_run_with_another_model_and_on_a_gpu(become: Any) -> None:
    extras, _, command = become("run", MODEL="hf://org/name", CUDA="1")
    assert command[2:] == ["hf://org/name", "--set", "parallelism.gpusPerNode=1"]
    assert "cuda" in extras
    assert "cuda" not in become("run", CUDA="0")[0]


def test_tests_build_the_checks(become: Any) -> None:
    extras, checks, command = become("test", "-x")
    assert command == ["pytest", "-x"] and checks and "dev" in extras
