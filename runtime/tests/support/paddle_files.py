"""Writes Paddle's files without Paddle, so that a test can have any of them, right or wrong."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.config_writer import plain_config_of
from oarlock_runtime.models.paddle.parts import Parts, Scheme
from oarlock_runtime.models.paddle.program import TYPES
from oarlock_runtime.models.tensors import Array

KINDS = {np.dtype("f4"): "f32", np.dtype("f2"): "f16", np.dtype("u2"): "bf16", np.dtype("i1"): "i8"}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer of (number, value); bytes are a string or a message."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def description(kind: str, dims: Iterable[int]) -> bytes:
    return message((1, TYPES[kind][0]), *((2, size) for size in dims))


def record(kind: str, dims: Iterable[int], values: bytes) -> bytes:
    desc = description(kind, dims)
    return struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + values


def pir_program(parameters: Iterable[tuple[str, str, list[Any]]]) -> dict[str, Any]:
    def op(name: str, kind: str, dims: list[Any]) -> dict[str, Any]:
        held = {"#": "0.t_dtensor", "D": [{"#": f"0.t_{kind}"}, dims, "NCHW", [], 0]}
        return {"#": "p", "A": [0, 1, 1, name], "DA": [], "O": {"%": 1, "TT": held}, "OA": [1, 0, 1], "QA": []}

    ops = [op(*parameter) for parameter in parameters] + [{"#": "1.data", "A": [], "I": [], "O": []}]
    block = {"#": "block_0", "args": [], "ops": ops}
    return {
        "base_code": {"magic": "pir", "trainable": True, "version": 4},
        "program": {"regions": [{"#": "region_0", "blocks": [block]}]},
    }


def program_desc(parameters: Iterable[tuple[str, str, list[Any]]]) -> bytes:
    def variable(name: str, holder: bytes, persistable: bool) -> tuple[int, bytes]:
        return 3, message((1, name.encode()), (2, holder), (3, int(persistable)))

    def tensor(kind: str, dims: list[Any]) -> bytes:
        return message((1, 7), (3, message((1, description(kind, dims)))))

    variables = [variable(name, tensor(kind, dims), True) for name, kind, dims in parameters]
    others = [variable("feed", message((1, 9)), True), variable("input_ids", tensor("i64", [-1, -1]), False)]
    return message((1, message((1, 0), (2, -1), *variables, *others)), (4, message((1, 0))))


def write_program(place: Path, arrays: dict[str, Array], pir: bool = True) -> None:
    """model.json or model.pdmodel, and model.pdiparams, of float32, float16, uint16 (bf16) and int8 arrays."""
    place.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    parameters = [(name, KINDS[arrays[name].dtype], list(arrays[name].shape)) for name in names]
    if pir:
        (place / "model.json").write_text(json.dumps(pir_program(parameters)))
    else:
        (place / "model.pdmodel").write_bytes(program_desc(parameters))
    records = [record(kind, dims, arrays[name].tobytes()) for name, kind, dims in parameters]
    (place / "model.pdiparams").write_bytes(b"".join(records))


def paddle_directory(
    out: Path, checkpoint: Checkpoint, scheme: Scheme | None = None, ranks: int = 1, pir: bool = True, **config: Any
) -> Path:
    """The directory that an export of `checkpoint` makes, but for the program's operators and the tokenizer."""
    parts = Parts(checkpoint, scheme or Scheme(), ranks)
    for rank in range(ranks):
        write_program(out / f"rank_{rank}" if ranks > 1 else out, dict(parts.of_rank(rank)), pir)
    values = plain_config_of(checkpoint, parts.dtype) | {"tensor_parallel_degree": ranks} | config
    (out / "config.json").write_text(json.dumps(values))
    return out
