"""The parameters that a Paddle program declares: `model.json` (PIR, Paddle 3) or `model.pdmodel` (a ProgramDesc).

Used by the engine process and the command line. Names, types and dimensions are all that is taken; no operator of a
program is looked at, let alone run.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.protobuf import message_fields, packed_or_single

PIR, PROGRAM_DESC = "model.json", "model.pdmodel"
MAX_PROGRAM = 1 << 30
DENSE_TENSOR = 7  # ProgramDesc's type of a variable that holds one tensor
# Types of elements: PIR's name, and the number that a ProgramDesc and a .pdiparams record use.
TYPES = {
    "bool": (0, 1), "i16": (1, 2), "i32": (2, 4), "i64": (3, 8), "f16": (4, 2), "f32": (5, 4), "f64": (6, 8),
    "ui8": (20, 1), "i8": (21, 1), "bf16": (22, 2), "f8e4m3fn": (32, 1), "f8e5m2": (33, 1),
}  # fmt: skip
TYPE_OF_NUMBER = {number: name for name, (number, _) in TYPES.items()}


@dataclass(frozen=True)
class Parameter:
    """A tensor that the program expects to be loaded. `dtype` is a key of TYPES."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.dims) * TYPES[self.dtype][1]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.dims)}"


def program_file(directory: Path) -> Path | None:
    """The program of a directory, or None where there is none."""
    return next((directory / name for name in (PIR, PROGRAM_DESC) if (directory / name).exists()), None)


def read_parameters(file: Path) -> list[Parameter]:
    """The parameters in the order of their records. CheckpointError names the file, and the parameter at fault."""
    try:
        if file.is_fifo():  # opening it would wait for ever
            raise CheckpointError(f"{file}: is a pipe, not a file")
        if file.stat().st_size > MAX_PROGRAM:
            raise CheckpointError(f"{file}: has {file.stat().st_size} bytes, more than a program has")
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    declared = (_from_pir if file.name == PIR else _from_program_desc)(file, data)
    found: dict[str, Parameter] = {}
    for name, dtype, dims in declared:
        if name in found:
            raise CheckpointError(f"{file}: parameter {name!r:.80} is declared twice")
        if dtype not in TYPES:
            raise CheckpointError(f"{file}: parameter {name}: its element type {dtype!r:.40} is not known")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in dims) or len(dims) > 8:
            raise CheckpointError(f"{file}: parameter {name}: dimensions {dims!r:.80} are not positive numbers")
        found[name] = Parameter(name, dtype, tuple(dims))
    if not found:
        raise CheckpointError(f"{file}: declares no parameters; this is not an exported model")
    return [found[name] for name in sorted(found, key=lambda name: name.encode("utf-8", "surrogatepass"))]


def _from_pir(file: Path, data: bytes) -> list[tuple[str, Any, list[Any]]]:
    try:
        program = json.loads(data)
    except (ValueError, RecursionError) as error:
        problem = "nests too deeply" if isinstance(error, RecursionError) else f"is not valid JSON: {error}"
        raise CheckpointError(f"{file}: {problem}") from error
    try:
        if program["base_code"]["magic"] != "pir":
            raise CheckpointError(f"{file}: base_code.magic is not 'pir'; this is not a Paddle program")
        regions = program["program"]["regions"]
        ops = [op for region in regions for block in region["blocks"] for op in block["ops"] if op["#"] == "p"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: has not the structure of a Paddle program ({error})") from error
    declared = []
    for number, op in enumerate(ops):
        try:
            name, (element, dims, *_) = op["A"][3], op["O"]["TT"]["D"]
            dtype = element["#"].removeprefix("0.t_")
            if not isinstance(name, str) or not isinstance(dims, list):
                raise TypeError("a name or a list of dimensions is missing")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{file}: parameter {number} is malformed ({error})") from error
        declared.append((name, dtype, dims))
    return declared


def _from_program_desc(file: Path, data: bytes) -> list[tuple[str, Any, list[Any]]]:
    declared = []
    name = ""
    try:
        for number, block in message_fields(data):
            for kind, variable in message_fields(block) if number == 1 else ():
                if kind != 3:
                    continue
                fields = dict(message_fields(variable))
                name = fields[1].decode("utf-8")
                holder = dict(message_fields(fields[2]))
                if not fields.get(3) or holder.get(1) != DENSE_TENSOR:
                    continue
                dtype, dims = _tensor_desc(dict(message_fields(holder[3]))[1])
                declared.append((name, dtype, dims))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        place = f"variable {name!r:.80}" if name else "its first variable"
        raise CheckpointError(f"{file}: is damaged, or no ProgramDesc, at or behind {place}") from error
    return declared


def _tensor_desc(data: bytes) -> tuple[Any, list[int]]:
    """Element type and dimensions of a TensorDesc message."""
    dtype: Any = None
    dims: list[int] = []
    for number, value in message_fields(data):
        if number == 1:
            dtype = TYPE_OF_NUMBER.get(value, value)
        elif number == 2:
            dims += packed_or_single(value)
    return dtype, dims


def tensor_desc(data: bytes) -> tuple[Any, list[int]]:
    """Element type (a key of TYPES, or the unknown number) and dimensions; ValueError when it is damaged."""
    try:
        return _tensor_desc(data)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
