"""Opens a model, whatever its format: its spec, and its tensors by canonical name, none of them read yet.

The engine process loads its weights from here, `oarlock model inspect` its facts. A checkpoint that opens is complete:
every tensor that the spec asks for is there and has the right shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import GGUF_TENSORS, HF_TENSORS, file_name, spec_from_config
from oarlock_runtime.models.fields import read_json
from oarlock_runtime.models.gguf import GgufFile
from oarlock_runtime.models.paddle.directory import is_paddle, open_paddle
from oarlock_runtime.models.safetensors_reader import INDEX, SINGLE, read_refs, weight_files
from oarlock_runtime.models.spec import ModelSpec, tensor_shapes
from oarlock_runtime.models.tensors import TensorRef

CONFIG = "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """An open model: a GGUF file, or the directory of a Hugging Face model or of a Paddle static graph.

    `container` is "gguf", "safetensors" or "paddle", `ranks` for how many processes the files were cut.
    """

    path: Path
    container: str
    spec: ModelSpec
    refs: dict[str, TensorRef]
    ranks: int = 1

    def tensors(self) -> Iterator[tuple[str, TensorRef]]:
        """Canonical name and tensor, in the order in which a step uses them."""
        for name in tensor_shapes(self.spec):
            yield name, self.refs[name]

    def __getitem__(self, name: str) -> TensorRef:
        return self.refs[name]


def model_file(path: Path) -> Path:
    """The GGUF file, or the directory with a config.json, that a path stands for.

    A directory without a config.json may hold one GGUF file. CheckpointError says what is missing.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise CheckpointError(f"{path}: give the directory that holds it, {path.parent}, as the model")
        return path
    if (path / CONFIG).exists():
        return path
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{path}: holds {len(found)} GGUF files; name one: {names}")
    raise CheckpointError(f"{path}: has neither {CONFIG} (with {SINGLE}, {INDEX} or a Paddle program) nor a .gguf file")


def open_checkpoint(path: Path | str, paddle_packing: str = "auto", rank: int = 0, world: int = 1) -> Checkpoint:
    """Opens a GGUF file, a Hugging Face directory or a Paddle static graph's.

    paddle_packing: how the last's quantized matrices are laid out, "sm75", "sm70" or "auto". Rank `rank` of `world`
    needs no other rank's files where they were cut for as many. CheckpointError names the file and field, tensor or
    parameter.
    """
    path = model_file(Path(path).expanduser())
    if path.is_file():
        gguf = GgufFile(path)
        checkpoint = Checkpoint(path, "gguf", gguf.spec, gguf.refs())
        _check(checkpoint, GGUF_TENSORS)
        return checkpoint
    if is_paddle(path):
        model = open_paddle(path, paddle_packing, rank, world)
        return Checkpoint(path, "paddle", model.spec, model.refs, model.ranks)
    config = read_json(path / CONFIG)
    generation = path / "generation_config.json"
    family, spec = spec_from_config(config, read_json(generation) if generation.exists() else None)
    checkpoint = Checkpoint(path, "safetensors", spec, read_refs(weight_files(path), family, spec))
    _check(checkpoint, HF_TENSORS)
    return checkpoint


def _check(checkpoint: Checkpoint, names: dict[str, str]) -> None:
    """Every tensor of the spec is there, with its shape, and no other."""
    expected = tensor_shapes(checkpoint.spec)
    for name, shape in expected.items():
        ref = checkpoint.refs.get(name)
        if ref is None:
            raise CheckpointError(f"{checkpoint.path}: tensor {file_name(name, names)} is missing")
        if ref.shape != shape:
            raise CheckpointError(f"{ref.file.path}: {ref.source}: shape {list(ref.shape)}, expected {list(shape)}")
    for name, ref in checkpoint.refs.items():
        if name not in expected:
            raise CheckpointError(f"{ref.file.path}: {ref.source}: this model's configuration has no place for it")
