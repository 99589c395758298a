"""Seeded random weights for a model that has none: `--load-format dummy`, for benchmarks that need no checkpoint.

Runs in the engine process, and in any process that loads a model. A config.json is enough. Weights are cut from one
period of random numbers that repeats, so that sixteen gigabytes cost no more than copying them; activations keep their
size from layer to layer, but the text means nothing.
"""

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.families import spec_from_config
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.presets import read_config
from oarlock_runtime.models.random import tensor_scale
from oarlock_runtime.models.random_tokenizer import made_tokenizer
from oarlock_runtime.models.spec import tensor_shapes
from oarlock_runtime.models.tensors import MappedFile, TensorRef, from_bf16, to_bf16
from oarlock_runtime.models.tokenizer import Tokenizer, load_tokenizer
from oarlock_runtime.models.tokenizer_gguf import from_metadata
from oarlock_runtime.models.tokenizer_hf import FILES

PERIOD = (1 << 22) - 3  # odd and not near a multiple of any width, so that rows differ


class Pool:
    """bf16 values of one period of normal deviates, scaled, and as many repetitions as were asked for."""

    def __init__(self, seed: int) -> None:
        self._period = np.random.default_rng(seed).standard_normal(PERIOD, np.float32)
        self._values: dict[float, npt.NDArray[np.uint16]] = {}

    def take(self, start: int, count: int, scale: float) -> npt.NDArray[np.uint16]:
        """`count` values from the place `start` on, without a copy."""
        values = self._values.get(scale)
        if values is None or len(values) < start + count:
            values = self._values[scale] = np.resize(to_bf16(self._period * np.float32(scale)), start + count)
        return values[start : start + count]


@dataclass(frozen=True)
class DummyRef(TensorRef):
    """A tensor that no file holds."""

    pool: Pool = field(default_factory=lambda: Pool(0), repr=False)
    scale: float = 1.0

    def read(self) -> npt.NDArray[Any]:
        if len(self.shape) == 1:
            return self.dequantize()
        start = zlib.crc32(self.name.encode()) % PERIOD // 8 * 8 + self.offset // 2
        return self.pool.take(start, math.prod(self.shape), self.scale).reshape(self.shape)

    def dequantize(self) -> npt.NDArray[np.float32]:
        if len(self.shape) == 1:
            return np.full(self.shape, float(self.name.endswith("norm")), np.float32)
        return from_bf16(self.read())

    def release(self) -> None:
        """There are no pages to give back."""


def open_dummy(name: Path | str, seed: int = 0) -> Checkpoint:
    """A checkpoint whose spec is that of a config.json (a path to it or to its directory, or a preset's name)."""
    config = read_config(str(name))
    _, spec = spec_from_config(config)
    pool = Pool(seed)
    nothing = MappedFile(Path("/dev/null"))
    refs: dict[str, TensorRef] = {}
    for tensor, shape in tensor_shapes(spec).items():
        bits = "bf16" if len(shape) > 1 else "f32"
        scale = tensor_scale(spec, tensor, shape)
        size = math.prod(shape) * 2
        refs[tensor] = DummyRef(tensor, tensor, nothing, 0, size, shape, bits, pool=pool, scale=scale)
    return Checkpoint(Path(name), "dummy", spec, refs)


def dummy_tokenizer(name: Path | str) -> Tokenizer:
    """The tokenizer beside the config.json, or a byte-level one where there is none."""
    path = Path(name).expanduser()
    if path.is_dir() and any((path / file).exists() for file in FILES):
        return load_tokenizer(path)
    config = read_config(str(name))
    _, spec = spec_from_config(config)
    return Tokenizer(from_metadata(Fields(path, made_tokenizer(spec.vocab))))
