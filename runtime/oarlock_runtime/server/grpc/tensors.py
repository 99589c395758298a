"""The two tensors of a call: a JSON text comes in as `IN`, others go out as `OUT`. Runs in the server processes.

Both are BYTES tensors of shape [1]. Their one element lies in the raw contents (four bytes of length, little-endian,
then the bytes, as Triton's clients send it) or in the tensor's own `contents`.
"""

import grpc

from oarlock_runtime.server.grpc.protocol.messages import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
)

INPUT, OUTPUT, DATATYPE, SHAPE = "IN", "OUT", "BYTES", (1,)
FINAL = "triton_final_response"
_LENGTH_BYTES = 4
_SHOWN = 64  # characters of a client's name in a message


class ProtocolError(Exception):
    """A call that does not fit the protocol: what Triton itself would refuse, before a model sees it."""

    def __init__(self, message: str, status: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def read_input(request: ModelInferRequest) -> bytes:
    """The element of `IN`. ProtocolError names what is wrong with the tensors."""
    if len(request.inputs) != 1:
        raise ProtocolError(f"expected 1 input, {INPUT!r}, but got {len(request.inputs)} inputs")
    tensor = request.inputs[0]
    if tensor.name != INPUT:
        raise ProtocolError(f"unexpected inference input {tensor.name[:_SHOWN]!r}; the model's input is {INPUT!r}")
    if tensor.datatype != DATATYPE:
        raise ProtocolError(f"input {INPUT!r} has the datatype {tensor.datatype[:_SHOWN]!r}; it must be {DATATYPE}")
    if tuple(tensor.shape) != SHAPE:
        shape = str(list(tensor.shape[:8]))[:_SHOWN]
        raise ProtocolError(f"input {INPUT!r} has the shape {shape}; it must be {list(SHAPE)}")
    parameters = {*tensor.parameters}
    for output in request.outputs:
        if output.name != OUTPUT:
            raise ProtocolError(f"unexpected inference output {output.name[:_SHOWN]!r}; the model's is {OUTPUT!r}")
        parameters |= {*output.parameters}
    if "shared_memory_region" in parameters:
        raise ProtocolError("shared memory is not supported; send the tensor's contents")
    return _element(tensor, list(request.raw_input_contents))


def _element(tensor: ModelInferRequest.InferInputTensor, raw: list[bytes]) -> bytes:
    given = list(tensor.contents.bytes_contents)
    if raw and tensor.HasField("contents"):
        raise ProtocolError(f"input {INPUT!r} has contents both of its own and in raw_input_contents; give one of them")
    if raw:
        if len(raw) != 1:
            raise ProtocolError(f"raw_input_contents has {len(raw)} entries for 1 input")
        size = len(raw[0]) - _LENGTH_BYTES
        told = int.from_bytes(raw[0][:_LENGTH_BYTES], "little")
        if size < 0 or told != size:
            raise ProtocolError(
                f"raw_input_contents of {INPUT!r} has {len(raw[0])} bytes; "
                "it must be one element: 4 bytes of length, little-endian, and as many bytes"
            )
        return raw[0][_LENGTH_BYTES:]
    if len(given) != 1:
        raise ProtocolError(f"input {INPUT!r} has {len(given)} elements in bytes_contents; shape {list(SHAPE)} needs 1")
    return given[0]


def response(request: ModelInferRequest, element: bytes, version: str, *, final: bool) -> ModelInferResponse:
    """An answer to `request` with `element` as its `OUT`; the last one says so."""
    return ModelInferResponse(
        model_name=request.model_name,
        model_version=version,
        id=request.id,
        parameters={FINAL: InferParameter(bool_param=final)},
        outputs=[ModelInferResponse.InferOutputTensor(name=OUTPUT, datatype=DATATYPE, shape=SHAPE)],
        raw_output_contents=[len(element).to_bytes(_LENGTH_BYTES, "little") + element],
    )


def tensor_metadata(name: str) -> ModelMetadataResponse.TensorMetadata:
    return ModelMetadataResponse.TensorMetadata(name=name, datatype=DATATYPE, shape=SHAPE)
