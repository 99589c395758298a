"""Shapes of well-known models by name, as config.json files, for `oarlock model random`. Runs in the command line."""

from pathlib import Path
from typing import Any

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields, read_json

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _config(
    architecture: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    context: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5 if architecture.startswith(("Llama", "Mistral")) else 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    } | more


_TINY = (3, 128, 4, 2, 256, 512, 512)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny-llama": _config(
        "LlamaForCausalLM",
        *_TINY,
        rope_scaling=LLAMA3_ROPE | {"original_max_position_embeddings": 64},
        tie_word_embeddings=True,
    ),
    "tiny-mistral": _config("MistralForCausalLM", *_TINY, sliding_window=48, head_dim=64),
    "tiny-qwen2": _config("Qwen2ForCausalLM", *_TINY, tie_word_embeddings=True),
    "tiny-qwen3": _config("Qwen3ForCausalLM", *_TINY, head_dim=64, tie_word_embeddings=True),
    "smollm2-135m": _config(
        "LlamaForCausalLM", 30, 576, 9, 3, 1536, 49152, 8192, rope_theta=100000.0, tie_word_embeddings=True
    ),
    "llama-1.1b": _config("LlamaForCausalLM", 22, 2048, 32, 4, 5632, 32000, 2048),
    "llama-8b": _config(
        "LlamaForCausalLM", 32, 4096, 32, 8, 14336, 128256, 131072, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE
    ),
    "mistral-7b": _config("MistralForCausalLM", 32, 4096, 32, 8, 14336, 32768, 32768, rope_theta=1000000.0),
    "qwen2.5-0.5b": _config(
        "Qwen2ForCausalLM", 24, 896, 14, 2, 4864, 151936, 32768, rope_theta=1000000.0, tie_word_embeddings=True
    ),
    "qwen2.5-7b": _config("Qwen2ForCausalLM", 28, 3584, 28, 4, 18944, 152064, 32768, rope_theta=1000000.0),
    "qwen3-0.6b": _config(
        "Qwen3ForCausalLM",
        *(28, 1024, 16, 8, 3072, 151936, 40960),
        head_dim=128,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    ),
}


def read_config(name: str) -> Fields:
    """The config.json that `name` stands for: a preset, a file, or a directory with one in it."""
    if name in PRESETS:
        return Fields(Path(name), PRESETS[name])
    path = Path(name).expanduser()
    if path.is_dir():
        path /= "config.json"
    if not path.exists():
        raise CheckpointError(f"{name}: is neither a file nor a preset; presets are {', '.join(PRESETS)}")
    return read_json(path)
