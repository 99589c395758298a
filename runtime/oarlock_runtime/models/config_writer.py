"""The config.json of an open model, to be written beside exported weights. Runs in the command line.

A directory's own configuration is kept, but for what a former export added; a GGUF file's is made from its spec.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from oarlock_runtime.models.checkpoint import CONFIG, Checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import FAMILIES
from oarlock_runtime.models.fields import read_json
from oarlock_runtime.models.paddle.directory import plain_config
from oarlock_runtime.models.spec import ModelSpec, RopeSpec, rotary_frequencies

# Keys that PaddleNLP's exporter adds, beside all that begin with `infer_model_` or `speculate_`.
EXPORT_KEYS = (
    *("tensor_parallel_degree", "tensor_parallel_rank", "model_name_or_path", "quant_type", "cachekv_int8_type"),
    *("use_fake_parameter", "single_card_ptq", "append_attn", "decode_strategy", "weightonly_group_size"),
    *("weight_block_size", "moe_quant_type", "output_via_mq", "dynamic_insert", "return_full_hidden_states"),
    *("block_size", "max_seq_len", "dtype", "mla_use_matrix_absorption", "paddlenlp_version"),
)
TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def plain_config_of(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """The values of a Hugging Face config.json; dtype (f32, f16 or bf16) is that of the weights."""
    spec = checkpoint.spec
    family = next(family for family in FAMILIES if family.name == spec.family)
    if checkpoint.path.is_dir():
        config = plain_config(read_json(checkpoint.path / CONFIG)).values
        values = {
            key: value
            for key, value in config.items()
            if key not in EXPORT_KEYS and not key.startswith(("infer_model_", "speculate_"))
        }
    else:
        values = _of_spec(spec)
        if spec.qkv_bias != family.qkv_bias:
            raise CheckpointError(
                f"{checkpoint.path}: a bias of q, k and v has no place in a {family.name} config.json"
            )
    exact = {"tie_word_embeddings": spec.tied_embeddings, "torch_dtype": TORCH_DTYPES[dtype]}
    return {"architectures": [family.architecture], "model_type": family.model_type} | values | exact


def _of_spec(spec: ModelSpec) -> dict[str, Any]:
    if spec.attention_scale:
        raise CheckpointError(f"attention.scale: {spec.attention_scale:g} can't be written into a config.json")
    values: dict[str, Any] = {
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.hidden,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ffn,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_context,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": spec.rope.base,
        "hidden_act": "silu",
    }
    if spec.sliding_window:
        values |= {"sliding_window": spec.sliding_window, "use_sliding_window": True, "max_window_layers": 0}
    scaling = _rope_scaling(spec.rope if spec.rope.scaling != "divisors" else _llama3_of(spec))
    if scaling is not None:
        values["rope_scaling"] = scaling
    if spec.bos_id is not None:
        values["bos_token_id"] = spec.bos_id
    if spec.eos_ids:
        values["eos_token_id"] = list(spec.eos_ids) if len(spec.eos_ids) > 1 else spec.eos_ids[0]
    return values


def _rope_scaling(rope: RopeSpec) -> dict[str, Any] | None:
    if rope.scaling == "none":
        return None
    if rope.scaling == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    if rope.scaling == "yarn":
        return {
            "rope_type": "yarn",
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_context,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "attention_factor": rope.attention_factor,
        }
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq,
        "high_freq_factor": rope.high_freq,
        "original_max_position_embeddings": rope.original_context,
    }


def _llama3_of(spec: ModelSpec) -> RopeSpec:
    """The llama3 scaling that a GGUF's divisors were made by; its low and high factors are 1 and 4 in every model."""
    plain = rotary_frequencies(replace(spec, rope=replace(spec.rope, scaling="none")))
    wanted = np.asarray(spec.rope.divisors)
    for original in (1 << exponent for exponent in range(5, 21)):
        rope = RopeSpec(spec.rope.base, "llama3", round(float(wanted.max()), 3), original)
        if np.allclose(plain / rotary_frequencies(replace(spec, rope=rope)), wanted, rtol=1e-3):
            return rope
    raise CheckpointError("the rotary embedding's divisors (rope_freqs.weight) can't be written into a config.json")
