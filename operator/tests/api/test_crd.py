"""The CRD in the repository is the one the types make, and is structural."""

from collections.abc import Iterator
from typing import Any

from oarlock_operator.api import crd


def test_file_is_current() -> None:
    assert crd.PATH.read_text() == crd.text(), "run python -m oarlock_operator.api.crd"


def _schemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _schemas(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _schemas(schema[key], f"{path}.{key}")


def test_every_field_is_typed_and_described() -> None:
    properties = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        for path, schema in _schemas(properties[part], part):
            assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
            assert "$ref" not in schema and "title" not in schema, path
            if path != part and not path.endswith(("items", "additionalProperties")):
                assert schema.get("description"), path


def test_objects_with_defaults_inside_have_them_written_out() -> None:
    spec = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert spec["parallelism"]["default"] == {"nodes": 1, "gpusPerNode": 0, "gpuResource": "nvidia.com/gpu"}
    assert spec["parallelism"]["properties"]["nodes"]["default"] == 1
    assert spec["scheduling"]["default"] == {}
    assert "default" not in spec["image"]
