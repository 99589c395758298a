"""Our copy of the protocol: compiled from its source, and the same on the wire as the one of Triton's client."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from oarlock_runtime.server.grpc.protocol import messages

FOLDER = Path(messages.__file__).parent
TOOL = Path(__file__).parents[4] / "tools" / "protocol.py"


def test_what_is_compiled_is_what_the_source_says(tmp_path: Path) -> None:
    runpy.run_path(str(TOOL))["compile_protocol"](tmp_path)
    for name in ("inference.binpb", "messages.pyi"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), "run tools/protocol.py"


def described(module: Any) -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    found: dict[str, Any] = {}

    def walk(prefix: str, message: Any) -> None:
        found[prefix + message.name] = {
            field.name: (field.number, field.type, field.type_name, field.label) for field in message.field
        }
        for inner in message.nested_type:
            walk(f"{prefix}{message.name}.", inner)

    for message in file.message_type:
        walk("", message)
    for service in file.service:
        for method in service.method:
            found["rpc " + method.name] = (
                method.input_type,
                method.output_type,
                method.client_streaming,
                method.server_streaming,
            )
    return found


OURS = described(messages)
THEIRS = described(service_pb2) | described(model_config_pb2)


@pytest.mark.parametrize("name", OURS)
def test_each_message_has_the_standards_fields_and_numbers(name: str) -> None:
    ours, theirs = OURS[name], THEIRS[name]
    if isinstance(ours, tuple):
        assert ours == theirs
    else:
        assert ours == {field: theirs[field] for field in ours}
        assert name.startswith("Model") or ours == theirs
