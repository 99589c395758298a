"""Writes an open model in another container: `oarlock model export`.

Runs in the command line. To safetensors, a Hugging Face directory; to paddle, a static graph in PaddleNLP's layout,
which needs Paddle itself. Weights that are not quantized on the way keep their bits.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.config_writer import TORCH_DTYPES, plain_config_of
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import HF_TENSORS, file_name
from oarlock_runtime.models.paddle.parts import Parts, Scheme, dense
from oarlock_runtime.models.random_tokenizer import borrowed_tokenizer, copy_tokenizer, write_tokenizer
from oarlock_runtime.models.safetensors_reader import SINGLE
from oarlock_runtime.models.safetensors_writer import SafetensorsWriter
from oarlock_runtime.models.spec import tensor_shapes
from oarlock_runtime.models.tensors import DENSE

Progress = Callable[[int, int], None]  # tensors (safetensors) or ranks (paddle) written, and in all
GENERATION = "generation_config.json"
BLOCK_TOKENS = 64
LAYOUT_VERSION = "3.0.0.b4"  # of PaddleNLP, whose directories these are


@dataclass(frozen=True)
class PaddleOptions:
    """What a static graph is written for: ranks of tensor parallelism, and the longest sequence (0: the model's)."""

    scheme: Scheme = field(default_factory=Scheme)
    ranks: int = 1
    max_context: int = 0


def export_model(
    checkpoint: Checkpoint,
    out: Path,
    container: str,
    options: PaddleOptions,
    progress: Progress = lambda done, all: None,
) -> None:
    """Writes the directory `out`, which must not exist. options.scheme.dtype counts for safetensors too.

    CheckpointError when the model can't be written so, or Paddle is not installed.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists already")
    write = _write_paddle if container == "paddle" else _write_safetensors
    try:
        write(checkpoint, out, options, progress)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _write_safetensors(checkpoint: Checkpoint, out: Path, options: PaddleOptions, progress: Progress) -> None:
    scheme = options.scheme
    shapes = tensor_shapes(checkpoint.spec)
    own = {name: checkpoint[name].format for name in shapes}
    kept = {
        name: kind if scheme.dtype == "auto" and kind in DENSE else scheme.of(checkpoint) for name, kind in own.items()
    }
    config = plain_config_of(checkpoint, kept["layers.0.q"])
    _write_beside(checkpoint, out, config)
    entries = [(file_name(name, HF_TENSORS), kept[name], shape) for name, shape in shapes.items()]
    with SafetensorsWriter(out / SINGLE, entries) as writer:
        for done, (name, ref) in enumerate(checkpoint.tensors(), 1):
            writer.write(dense(ref, kept[name]))
            ref.release()
            progress(done, len(entries))


def _write_paddle(checkpoint: Checkpoint, out: Path, options: PaddleOptions, progress: Progress) -> None:
    try:
        from oarlock_runtime.models.paddle.graph import paddle_commit, save_graph
    except ImportError as error:
        raise CheckpointError(
            f"writing a static graph needs Paddle: pip install 'oarlock[paddle]' ({error})"
        ) from error
    parts = Parts(checkpoint, options.scheme, options.ranks)
    config = plain_config_of(checkpoint, parts.dtype) | _export_keys(checkpoint, parts, options, paddle_commit())
    _write_beside(checkpoint, out, config)
    for rank in range(options.ranks):
        place = out / f"rank_{rank}" if options.ranks > 1 else out
        place.mkdir(exist_ok=True)
        save_graph(parts, rank, place)
        progress(rank + 1, options.ranks)


def _export_keys(checkpoint: Checkpoint, parts: Parts, options: PaddleOptions, commit: str) -> dict[str, Any]:
    """What PaddleNLP's exporter adds to a config.json."""
    length = options.max_context or checkpoint.spec.max_context
    return {
        "dtype": TORCH_DTYPES[parts.dtype],
        "infer_model_block_size": BLOCK_TOKENS,
        "infer_model_max_seq_len": length,
        "infer_model_dtype": TORCH_DTYPES[parts.dtype],
        "infer_model_cachekv_int8_type": None,
        "infer_model_paddle_commit": commit,
        "mla_use_matrix_absorption": False,
        "paddlenlp_version": LAYOUT_VERSION,
        "tensor_parallel_degree": options.ranks,
        "tensor_parallel_rank": 0,
        "quant_type": options.scheme.quant_type,
        "cachekv_int8_type": None,
        "weightonly_group_size": options.scheme.group,
        "append_attn": False,
        "use_fake_parameter": False,
        "single_card_ptq": False,
        "return_full_hidden_states": False,
        "block_size": BLOCK_TOKENS,
        "max_seq_len": length,
    }


def _write_beside(checkpoint: Checkpoint, out: Path, config: dict[str, Any]) -> None:
    """config.json, generation_config.json and the tokenizer."""
    out.mkdir(parents=True)
    source = checkpoint.path
    if source.is_dir():
        copy_tokenizer(source, out)
        if (source / GENERATION).exists():
            shutil.copyfile(source / GENERATION, out / GENERATION)
    else:
        write_tokenizer(out, borrowed_tokenizer(source, checkpoint.spec.vocab))
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if not (out / GENERATION).exists():
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        (out / GENERATION).write_text(json.dumps(ends, indent=2), encoding="utf-8")
