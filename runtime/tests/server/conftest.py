"""What the server's tests share: a tiny model on disk, its tokenizer, and an API over a scripted engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.scripted_api import ScriptedApi, scripted_api
from support.tiny import tiny_directory

from oarlock_runtime.models.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(tiny_model)


@pytest.fixture
def api(tokenizer: Tokenizer) -> Iterator[ScriptedApi]:
    with scripted_api(tokenizer, max_n=4, max_prompts=4, body_limit=1 << 16) as running:
        yield running
