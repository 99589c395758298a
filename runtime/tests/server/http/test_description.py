"""The API's own description: bodies made from it are answered, whatever they hold, and it covers both dialects."""

import json
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from support.scripted_api import ScriptedApi

from oarlock_runtime.server.paddle.description import FIELDS
from oarlock_runtime.server.paddle.task import PRIVATE_FIELDS

LIMITS = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_bodies_made_from_the_description_are_answered(api: ScriptedApi) -> None:
    schema = schemathesis.openapi.from_url(api.url + "/openapi.json")
    tried = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        tried.add((operation.method.upper(), operation.path))

        @LIMITS
        @given(operation.as_strategy())
        def run(case: Any) -> None:
            response = case.call(timeout=20)
            case.validate_response(response, checks=[not_a_server_error])

        run()
    assert {("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models")} <= tried
    assert httpx.post(api.url + "/v1/chat/completions", json={"text": "a"}, timeout=20).json()["error_code"] == 0


def test_the_private_dialect_is_described(api: ScriptedApi) -> None:
    document = httpx.get(api.url + "/openapi.json", timeout=20).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "PaddleFields" in json.dumps(chat)
    assert PRIVATE_FIELDS <= set(FIELDS) == set(document["components"]["schemas"]["PaddleFields"]["properties"])
