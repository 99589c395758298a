"""Where each parameter lies in a `.pdiparams` file, which holds them one after the other, without their names.

Used by the engine process and the command line. Records come in the byte order of the names that the program declares,
each with a small header of its own, which is held against the program, so that a file of another model is refused by
the name of the first parameter that differs.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.paddle.program import TYPES, Parameter, program_file, read_parameters, tensor_desc
from oarlock_runtime.models.tensors import Array, MappedFile

PARAMETERS = "model.pdiparams"
HEADER = struct.Struct(
    "<IQIi"
)  # version of the levels, number of levels, version of the tensor, bytes of its description
MAX_DESCRIPTION = 256
NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@dataclass(frozen=True)
class Record:
    """A parameter and the place of its values in `file`."""

    parameter: Parameter
    file: MappedFile
    offset: int

    def array(self) -> Array:
        """The values without a copy, unless they lie unaligned; 8-bit elements as uint8, bf16 as uint16."""
        dtype = NUMPY.get(self.parameter.dtype, "u1")
        view = self.file.view(self.offset, math.prod(self.parameter.dims), dtype)
        return (view if view.flags.aligned else view.copy()).reshape(self.parameter.dims)

    def release(self) -> None:
        self.file.release(self.offset, self.parameter.nbytes)

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: parameter {self.parameter.name}: {problem}")


def read_records(directory: Path) -> dict[str, Record]:
    """The parameters of a directory with a program and its parameters, by name in their order."""
    program = program_file(directory)
    if program is None:
        raise CheckpointError(f"{directory}: has no Paddle program, neither model.json nor model.pdmodel")
    parameters = read_parameters(program)
    file = MappedFile(directory / PARAMETERS)
    records: dict[str, Record] = {}
    at = 0
    for parameter in parameters:
        at = _record_values(file, at, parameter, program)
        records[parameter.name] = Record(parameter, file, at)
        at += parameter.nbytes
        if at > file.size:
            raise CheckpointError(
                f"{file.path}: parameter {parameter.name}: needs {parameter.nbytes} bytes up to {at}, but the file has "
                f"{file.size}; it is truncated"
            )
    if at != file.size:
        raise CheckpointError(
            f"{file.path}: has {file.size} bytes, but the {len(records)} parameters of {program.name} end at {at}"
        )
    return records


def _record_values(file: MappedFile, at: int, parameter: Parameter, program: Path) -> int:
    """The offset of a record's values, after its header was held against the program."""
    where = f"{file.path}: parameter {parameter.name}"
    if at + HEADER.size > file.size:
        raise CheckpointError(f"{where}: its record would begin at {at}, but the file has {file.size} bytes")
    level_version, levels, version, size = HEADER.unpack_from(file.buffer, at)
    if level_version or levels or version or not 0 < size <= MAX_DESCRIPTION:
        raise CheckpointError(f"{where}: no record begins at byte {at}; the file is damaged, or of another program")
    start = at + HEADER.size
    try:
        dtype, dims = tensor_desc(bytes(file.buffer[start : start + size]))
    except ValueError as error:
        raise CheckpointError(f"{where}: the record's description at byte {start} is damaged") from error
    if (dtype, tuple(dims)) != (parameter.dtype, parameter.dims):
        held = math.prod(dims) * TYPES[dtype][1] if dtype in TYPES else "an unknown number of"
        raise CheckpointError(
            f"{where}: the file holds {dtype} {dims!r:.80}, {held} bytes, but {program.name} declares {parameter}, "
            f"{parameter.nbytes} bytes"
        )
    return start + int(size)
