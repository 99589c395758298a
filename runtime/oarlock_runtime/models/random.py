"""Writes a seeded random model of any shape, for benchmarks and tests: `oarlock model random`.

Runs in the command line. The same seed gives the same weights in either container. They are scaled so that
activations keep their size from layer to layer and the logits are neither flat nor all on one token.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import HF_TENSORS, file_name, spec_from_config
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.gguf import pairs_from_halves
from oarlock_runtime.models.gguf_writer import GgufFileWriter, encode
from oarlock_runtime.models.random_tokenizer import (
    borrowed_tokenizer,
    copy_tokenizer,
    made_tokenizer,
    write_tokenizer,
)
from oarlock_runtime.models.safetensors_reader import SINGLE
from oarlock_runtime.models.safetensors_writer import SafetensorsWriter
from oarlock_runtime.models.spec import ModelSpec, tensor_shapes
from oarlock_runtime.models.tensors import BLOCK_BYTES, DENSE

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]  # weights written, weights in all

LOGIT_SCALE = 3.0  # standard deviation of the logits
NORM_SPREAD = 0.1
SLAB = 4 << 20  # weights made at a time
DENSE_DTYPES = tuple(DENSE)
GGUF_DTYPES = (*DENSE, *BLOCK_BYTES)


def tensor_scale(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation of the values of a matrix or a bias."""
    leaf = name.rpartition(".")[2]
    scale = 1.0 / math.sqrt(shape[-1])
    if leaf.endswith("_bias"):
        return NORM_SPREAD
    if leaf in ("o", "down"):
        return scale / math.sqrt(2 * spec.layers)
    if leaf == "lm_head" or (leaf == "embed" and spec.tied_embeddings):
        return scale * LOGIT_SCALE
    return 1.0 if leaf == "embed" else scale


def random_tensor(spec: ModelSpec, name: str, seed: int) -> Iterator[Floats]:
    """The values of one tensor in slabs of whole rows; vectors in one piece."""
    shape = tensor_shapes(spec)[name]
    draw = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    leaf = name.rpartition(".")[2]
    if leaf.endswith("norm"):
        yield 1.0 + NORM_SPREAD * draw.standard_normal(shape, np.float32)
        return
    scale = tensor_scale(spec, name, shape)
    step = shape[0] if len(shape) == 1 else max(1, SLAB // shape[1])
    for start in range(0, shape[0], step):
        rows = (min(step, shape[0] - start), *shape[1:])
        slab = draw.standard_normal(rows, np.float32)
        slab *= np.float32(scale)
        yield slab


def write_random_model(
    config: Fields,
    out: Path,
    container: str,
    *,
    seed: int = 0,
    dtype: str = "bf16",
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes the model that `config` (a config.json, see presets.read_config) describes.

    container: "gguf" makes the file `out`, "safetensors" the directory `out`; neither may exist. dtype: bf16, f16, f32,
    and for a GGUF q8_0, q4_0 or q4_1 (vectors are float32 there). tokenizer: the model to borrow one from; otherwise a
    byte-level one is made. CheckpointError when any of this can't be.
    """
    allowed = {"safetensors": DENSE_DTYPES, "gguf": GGUF_DTYPES}.get(container)
    if allowed is None:
        raise CheckpointError(f"container {container!r} is not gguf or safetensors")
    if dtype not in allowed:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(allowed)}, which {container} can hold")
    if out.exists():
        raise CheckpointError(f"{out}: exists already")
    write = _write_gguf if container == "gguf" else _write_safetensors
    write(config, out, seed, dtype, tokenizer, progress or (lambda done, total: None))


def _write_safetensors(
    config: Fields, out: Path, seed: int, dtype: str, tokenizer: Path | None, progress: Progress
) -> None:
    _, spec = spec_from_config(config)
    copied = tokenizer is not None and tokenizer.is_dir() and (tokenizer / "config.json").exists()
    values = {} if copied else _tokenizer_values(tokenizer, spec.vocab)
    out.mkdir(parents=True)
    if tokenizer is not None and copied:
        copy_tokenizer(tokenizer, out)
    else:
        write_tokenizer(out, values)
    ends = {f"{end}_token_id": values.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos")}
    known = {key: token_id for key, token_id in ends.items() if token_id is not None}
    (out / "config.json").write_text(json.dumps({**config.values, **known}, indent=2), encoding="utf-8")
    entries = [(file_name(name, HF_TENSORS), dtype, shape) for name, shape in tensor_shapes(spec).items()]
    done = 0
    with SafetensorsWriter(out / SINGLE, entries) as writer:
        for name in tensor_shapes(spec):
            for slab in random_tensor(spec, name, seed):
                writer.write(encode(slab, dtype))
                done += slab.size
                progress(done, spec.parameters)


def _write_gguf(config: Fields, out: Path, seed: int, dtype: str, tokenizer: Path | None, progress: Progress) -> None:
    family, spec = spec_from_config(config)
    values = _tokenizer_values(tokenizer, spec.vocab)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with GgufFileWriter(out, family.gguf_architecture, spec, values, dtype) as writer:
        for name, shape in tensor_shapes(spec).items():
            kind = writer.dtype_of(name)
            rows = np.concatenate([encode(slab, kind) for slab in random_tensor(spec, name, seed)])
            leaf = name.rpartition(".")[2]
            if family.gguf_paired_rope and leaf in ("q", "k"):
                rows = pairs_from_halves(rows, spec.head_dim)
            writer.write(rows)
            done += math.prod(shape)
            progress(done, spec.parameters)


def _tokenizer_values(lender: Path | None, vocab: int) -> dict[str, Any]:
    return made_tokenizer(vocab) if lender is None else borrowed_tokenizer(lender, vocab)
