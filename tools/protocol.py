"""Compiles the gRPC protocol: writes what is made from inference.proto into the folder beside it."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "runtime" / "oarlock_runtime" / "server" / "grpc" / "protocol"


def compile_protocol(into: Path) -> None:
    """Writes inference.binpb (the descriptor set) and messages.pyi (the types) into a folder."""
    from grpc_tools import protoc

    words = ["protoc", f"-I{FOLDER}", f"--descriptor_set_out={into / 'inference.binpb'}", f"--pyi_out={into}"]
    if protoc.main([*words, "inference.proto"]) != 0:
        raise SystemExit("the protocol does not compile")
    types = into / "inference_pb2.pyi"
    service = "from google.protobuf.descriptor import ServiceDescriptor as _ServiceDescriptor\n"
    into.joinpath("messages.pyi").write_text(
        service + types.read_text(encoding="utf-8") + "\nSERVICE: _ServiceDescriptor\n", encoding="utf-8"
    )
    types.unlink()


if __name__ == "__main__":
    compile_protocol(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
