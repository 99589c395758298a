"""Tiny random models of every family, written where a test wants them."""

from pathlib import Path
from typing import Any

from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.presets import PRESETS
from oarlock_runtime.models.random import write_random_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tiny_config(family: str, **changes: Any) -> Fields:
    """The config.json of a tiny model of `family`, with some of its fields changed."""
    return Fields(Path(f"tiny-{family}"), PRESETS[f"tiny-{family}"] | changes)


def tiny_directory(folder: Path, family: str, dtype: str = "f32", seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face directory with f32, f16 or bf16 weights and a byte-level tokenizer."""
    out = folder / f"{family}-{dtype}-{seed}"
    write_random_model(tiny_config(family, **changes), out, "safetensors", seed=seed, dtype=dtype)
    return out


def tiny_gguf(folder: Path, family: str, dtype: str = "f32", seed: int = 0, **changes: Any) -> Path:
    """A GGUF file whose matrices are f32, f16, bf16, q8_0, q4_0 or q4_1."""
    out = folder / f"{family}-{dtype}-{seed}.gguf"
    write_random_model(tiny_config(family, **changes), out, "gguf", seed=seed, dtype=dtype)
    return out


def tiny_checkpoint(folder: Path, family: str, dtype: str = "f32", seed: int = 0, **changes: Any) -> Checkpoint:
    """An open tiny model, from a directory for dense dtypes and from a GGUF for the others."""
    write = tiny_directory if dtype in ("f32", "f16", "bf16") else tiny_gguf
    return open_checkpoint(write(folder, family, dtype, seed, **changes))
