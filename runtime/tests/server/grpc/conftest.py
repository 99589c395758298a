"""A server over a scripted engine, with its gRPC port open."""

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton
from support.scripted_api import ScriptedApi, scripted_api
from support.served import free_ports
from support.triton import client_of

from oarlock_runtime.models.tokenizer import Tokenizer


@pytest.fixture
def api(tokenizer: Tokenizer) -> Iterator[ScriptedApi]:
    with scripted_api(tokenizer, grpc_port=free_ports(1)[0], body_limit=1 << 16) as running:
        yield running


@pytest.fixture
def client(api: ScriptedApi) -> Iterator[triton.InferenceServerClient]:
    with client_of(f"127.0.0.1:{api.settings.grpc_port}") as opened:
        yield opened
