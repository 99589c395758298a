"""Reader of Hugging Face safetensors checkpoints: one file, or shards listed by an index; memory-mapped and lazy.

Used by the engine process and the command line. The format is a JSON header and raw arrays; the header is checked here
so that a damaged file is refused by name before anything is read from it.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import HF_TENSORS, IGNORED, Family, canonical_name
from oarlock_runtime.models.fields import read_json
from oarlock_runtime.models.spec import ModelSpec
from oarlock_runtime.models.tensors import DENSE, MappedFile, TensorRef

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
MAX_HEADER = 100 << 20


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, by its index if it has one. CheckpointError when one is missing."""
    index = directory / INDEX
    if not index.exists():
        if not (directory / SINGLE).exists():
            raise CheckpointError(f"{directory}: has neither {SINGLE} nor {INDEX}")
        return [directory / SINGLE]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index}: weight_map: is not a table from tensor names to file names")
    files = [directory / name for name in sorted(set(shards.values()))]
    for file in files:
        if file.parent != directory:
            raise CheckpointError(f"{index}: weight_map: {file.name} lies outside the model's directory")
        if not file.exists():
            raise CheckpointError(f"{file}: is listed in {INDEX} but missing")
    return files


def read_refs(files: list[Path], family: Family, spec: ModelSpec) -> dict[str, TensorRef]:
    """Every tensor of the files by canonical name. A name the family hasn't, or one given twice, is an error."""
    refs: dict[str, TensorRef] = {}
    for path in files:
        file = MappedFile(path)
        for source, name, ref in _entries(file, family):
            if spec.tied_embeddings and name == "lm_head":
                continue
            if name in refs:
                raise CheckpointError(f"{path}: {source}: is also in {refs[name].file.path.name}")
            refs[name] = ref
    return refs


def _entries(file: MappedFile, family: Family) -> list[tuple[str, str, TensorRef]]:
    header, data = _header(file)
    found = []
    for source, entry in header.items():
        if source == "__metadata__" or IGNORED.fullmatch(source):
            continue
        name = canonical_name(source, HF_TENSORS)
        if name is None:
            raise CheckpointError(f"{file.path}: {source}: {family.name} models have no such tensor")
        found.append((source, name, _ref(file, source, name, entry, data)))
    return found


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset at which the arrays begin."""
    if file.size < 8:
        raise CheckpointError(f"{file.path}: not a safetensors file ({file.size} bytes)")
    length = struct.unpack_from("<Q", file.buffer, 0)[0]
    if length > min(MAX_HEADER, file.size - 8):
        raise CheckpointError(
            f"{file.path}: its header claims {length} of {file.size} bytes; truncated, or not safetensors"
        )
    try:
        header = json.loads(file.buffer[8 : 8 + length])
    except ValueError as error:
        raise CheckpointError(f"{file.path}: the header is not JSON; this is not a safetensors file") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.path}: the header is not a JSON object; this is not a safetensors file")
    return header, 8 + length


def _ref(file: MappedFile, source: str, name: str, entry: Any, data: int) -> TensorRef:
    try:
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(isinstance(size, int) and size >= 0 for size in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{file.path}: {source}: its header entry is malformed")
    if kind not in FORMATS:
        raise CheckpointError(f"{file.path}: {source}: dtype {kind} is not supported; expected {', '.join(FORMATS)}")
    expected = math.prod(shape) * DENSE[FORMATS[kind]]
    if stop - start != expected:
        raise CheckpointError(f"{file.path}: {source}: {stop - start} bytes; {kind} {list(shape)} needs {expected}")
    if data + stop > file.size:
        raise CheckpointError(
            f"{file.path}: {source}: needs {data + stop} bytes, but the file has {file.size}; it is truncated"
        )
    return TensorRef(name, source, file, data + start, expected, shape, FORMATS[kind])
