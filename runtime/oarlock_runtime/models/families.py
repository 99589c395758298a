"""The model families: for each, a table from its configuration to a ModelSpec and from its tensor names to ours.

A new family is a row here, not a new forward pass. Used by checkpoint.py (engine and command line).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.rope_scaling import rope_from_config, rope_from_gguf
from oarlock_runtime.models.spec import ModelSpec

# Hugging Face tensor names, without the `.weight` of matrices and norms; {} stands for the layer.
HF_TENSORS = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "final_norm",
    "lm_head.weight": "lm_head",
    "model.layers.{}.input_layernorm.weight": "layers.{}.attn_norm",
    "model.layers.{}.self_attn.q_proj.weight": "layers.{}.q",
    "model.layers.{}.self_attn.k_proj.weight": "layers.{}.k",
    "model.layers.{}.self_attn.v_proj.weight": "layers.{}.v",
    "model.layers.{}.self_attn.q_proj.bias": "layers.{}.q_bias",
    "model.layers.{}.self_attn.k_proj.bias": "layers.{}.k_bias",
    "model.layers.{}.self_attn.v_proj.bias": "layers.{}.v_bias",
    "model.layers.{}.self_attn.q_norm.weight": "layers.{}.q_norm",
    "model.layers.{}.self_attn.k_norm.weight": "layers.{}.k_norm",
    "model.layers.{}.self_attn.o_proj.weight": "layers.{}.o",
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.ffn_norm",
    "model.layers.{}.mlp.gate_proj.weight": "layers.{}.gate",
    "model.layers.{}.mlp.up_proj.weight": "layers.{}.up",
    "model.layers.{}.mlp.down_proj.weight": "layers.{}.down",
}
GGUF_TENSORS = {
    "token_embd.weight": "embed",
    "output_norm.weight": "final_norm",
    "output.weight": "lm_head",
    "blk.{}.attn_norm.weight": "layers.{}.attn_norm",
    "blk.{}.attn_q.weight": "layers.{}.q",
    "blk.{}.attn_k.weight": "layers.{}.k",
    "blk.{}.attn_v.weight": "layers.{}.v",
    "blk.{}.attn_q.bias": "layers.{}.q_bias",
    "blk.{}.attn_k.bias": "layers.{}.k_bias",
    "blk.{}.attn_v.bias": "layers.{}.v_bias",
    "blk.{}.attn_q_norm.weight": "layers.{}.q_norm",
    "blk.{}.attn_k_norm.weight": "layers.{}.k_norm",
    "blk.{}.attn_output.weight": "layers.{}.o",
    "blk.{}.ffn_norm.weight": "layers.{}.ffn_norm",
    "blk.{}.ffn_gate.weight": "layers.{}.gate",
    "blk.{}.ffn_up.weight": "layers.{}.up",
    "blk.{}.ffn_down.weight": "layers.{}.down",
}
# Tensors that carry nothing the spec doesn't say already.
IGNORED = re.compile(r"(.*\.)?rotary_emb\.inv_freq|rope_freqs\.weight|.*\.attn\.(masked_)?bias")
LAYER = re.compile(r"\d+")


def canonical_name(name: str, table: dict[str, str]) -> str | None:
    """Our name of a file's tensor, or None when the table has none for it."""
    number = LAYER.search(name)
    if number is None:
        return table.get(name)
    ours = table.get(name[: number.start()] + "{}" + name[number.end() :])
    return None if ours is None else ours.format(number.group())


def file_name(name: str, table: dict[str, str]) -> str:
    """The file's name of our canonical tensor; the inverse of canonical_name."""
    pattern = LAYER.sub("{}", name)
    theirs = next(theirs for theirs, ours in table.items() if ours == pattern)
    number = LAYER.search(name)
    return theirs.format(number.group()) if number else theirs


@dataclass(frozen=True)
class Family:
    """One row: what a family has that others have not. `window` reads the sliding window from a config.json."""

    name: str
    architecture: str  # config.json's architectures[0]
    model_type: str
    gguf_architecture: str
    window: Callable[[Fields, int], int]
    qkv_bias: bool = False
    qk_norm: bool = False
    gguf_paired_rope: bool = False  # a GGUF of it stores q and k rows so that neighbours, not halves, are paired


def _no_window(config: Fields, layers: int) -> int:
    if config.has("sliding_window"):
        raise config.error("sliding_window", f"{config.get('sliding_window')!r} is not expected of this family")
    return 0


def _window(config: Fields, layers: int) -> int:
    window = config.integer("sliding_window", 0, low=0)
    return window if window and _windowed_layers(config, layers, range(layers)) else 0


def _switched_window(config: Fields, layers: int) -> int:
    if not config.flag("use_sliding_window", False):
        return 0
    window = config.integer("sliding_window", 4096, low=0)
    first = config.integer("max_window_layers", 28, low=0)
    return window if window and _windowed_layers(config, layers, range(min(first, layers), layers)) else 0


def _windowed_layers(config: Fields, layers: int, windowed: range) -> bool:
    """Whether all layers have the window (True) or none (False); a mixture is refused."""
    count = len(windowed)
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise config.error("layer_types", f"is not a list of {layers} layer types")
        unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
        if unknown:
            raise config.error("layer_types", f"{unknown[0]!r} is not full_attention or sliding_attention")
        count = kinds.count("sliding_attention")
    if count not in (0, layers):
        field = "layer_types" if kinds is not None else "max_window_layers"
        raise config.error(
            field, f"{count} of {layers} layers have a sliding window; only all of them or none is supported"
        )
    return count == layers


FAMILIES = (
    Family("llama", "LlamaForCausalLM", "llama", "llama", _no_window, gguf_paired_rope=True),
    Family("mistral", "MistralForCausalLM", "mistral", "llama", _window, gguf_paired_rope=True),
    Family("qwen2", "Qwen2ForCausalLM", "qwen2", "qwen2", _switched_window, qkv_bias=True),
    Family("qwen3", "Qwen3ForCausalLM", "qwen3", "qwen3", _switched_window, qk_norm=True),
)


def family_of_config(config: Fields) -> Family:
    """The family of a config.json, by `architectures`, or by `model_type` where that is missing."""
    names = config.get("architectures")
    if names:
        if not isinstance(names, list) or not isinstance(names[0], str):
            raise config.error("architectures", f"{names!r} is not a list of names")
        for family in FAMILIES:
            if family.architecture == names[0]:
                return family
        known = ", ".join(family.architecture for family in FAMILIES)
        raise config.error("architectures", f"{names[0]} is not supported; supported are {known}")
    for family in FAMILIES:
        if family.model_type == config.text("model_type"):
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise config.error("model_type", f"{config.text('model_type')!r} is not supported; supported are {known}")


def spec_from_config(config: Fields, generation: Fields | None = None) -> tuple[Family, ModelSpec]:
    """The spec of a Hugging Face config.json; generation is generation_config.json, whose eos ids count too."""
    family = family_of_config(config)
    for name in ("quantization_config", "compression_config"):
        if config.has(name):
            raise config.error(name, "pre-quantized safetensors are not supported; use the bf16 original or a GGUF")
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise config.error("hidden_act", f"{activation!r} is not supported; supported is silu")
    for name in ("attention_bias", "mlp_bias"):
        if config.flag(name, False) and not (family.qkv_bias and name == "attention_bias"):
            raise config.error(name, f"true is not supported for {family.name}")
    if config.number("partial_rotary_factor", 1.0) != 1.0:
        raise config.error("partial_rotary_factor", "only 1.0 is supported")
    layers = config.integer("num_hidden_layers")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    max_context = config.integer("max_position_embeddings", 2048)
    ids = config.ids("eos_token_id") + (generation.ids("eos_token_id") if generation else ())
    bos = config.ids("bos_token_id")
    spec = ModelSpec(
        family=family.name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=_head_dim(config, "head_dim", "num_attention_heads", hidden, heads),
        ffn=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        max_context=max_context,
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        rope=rope_from_config(config, max_context),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        sliding_window=family.window(config, layers),
        bos_id=bos[0] if bos else None,
        eos_ids=tuple(dict.fromkeys(ids)),
    )
    _check_heads(config, spec, "num_attention_heads", "num_key_value_heads", "head_dim")
    return family, spec


def family_of_gguf(file: Any, architecture: str) -> Family:
    for family in FAMILIES:
        if family.gguf_architecture == architecture:
            return family
    known = ", ".join(dict.fromkeys(family.gguf_architecture for family in FAMILIES))
    raise CheckpointError(f"{file}: general.architecture: {architecture!r} is not supported; supported are {known}")


def spec_from_gguf(
    header: Fields, vocab: int, divisors: tuple[float, ...], tied: bool, qkv_bias: bool
) -> tuple[Family, ModelSpec]:
    """The spec of a GGUF header, with what only its tensors tell: rows of the embedding, rope divisors, tie, bias."""
    architecture = header.text("general.architecture")
    family = family_of_gguf(header.file, architecture)
    prefix = architecture + "."
    keys = {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}
    for name in ("attention.head_count_kv", "feed_forward_length", "attention.head_count"):
        keys[name] = _same_everywhere(header, prefix + name, keys.get(name))
    part = Fields(header.file, keys, prefix)
    if part.integer("expert_count", 0, low=0):
        raise part.error("expert_count", f"{part.get('expert_count')}: mixtures of experts are not supported")
    hidden, heads = part.integer("embedding_length"), part.integer("attention.head_count")
    head_dim = _head_dim(part, "attention.key_length", "attention.head_count", hidden, heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if part.integer(name, head_dim) != head_dim:
            raise part.error(name, f"{part.get(name)} differs from the head size {head_dim}, which is not supported")
    if divisors and len(divisors) != head_dim // 2:
        raise CheckpointError(f"{header.file}: rope_freqs.weight: {len(divisors)} values, expected {head_dim // 2}")
    max_context = part.integer("context_length")
    bos, eos = header.ids("tokenizer.ggml.bos_token_id"), header.ids("tokenizer.ggml.eos_token_id")
    spec = ModelSpec(
        family=family.name,
        layers=part.integer("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=part.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=part.integer("feed_forward_length"),
        vocab=vocab,
        max_context=max_context,
        norm_epsilon=part.number("attention.layer_norm_rms_epsilon"),
        rope=rope_from_gguf(part, max_context, divisors),
        qkv_bias=family.qkv_bias or qkv_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=tied,
        sliding_window=part.integer("attention.sliding_window", 0, low=0),
        attention_scale=part.number("attention.scale", 0.0),
        bos_id=bos[0] if bos else None,
        eos_ids=eos,
    )
    _check_heads(part, spec, "attention.head_count", "attention.head_count_kv", "attention.key_length")
    return family, spec


def _head_dim(config: Fields, name: str, heads_name: str, hidden: int, heads: int) -> int:
    if config.has(name):
        return config.integer(name)
    if hidden % heads:
        raise config.error(heads_name, f"{heads} does not divide the hidden size {hidden}, and {name} is not given")
    return hidden // heads


def _check_heads(config: Fields, spec: ModelSpec, heads: str, kv_heads: str, head_dim: str) -> None:
    if spec.heads % spec.kv_heads:
        raise config.error(kv_heads, f"{spec.kv_heads} does not divide {heads} {spec.heads}")
    if spec.head_dim % 2:
        raise config.error(head_dim, f"{spec.head_dim} is odd; rotary embedding needs an even head size")


def _same_everywhere(header: Fields, name: str, value: Any) -> Any:
    """A value that some files give for every layer; it must be the same for all."""
    if not isinstance(value, list):
        return value
    if not value or any(item != value[0] for item in value):
        raise header.error(name, "differs between layers, which is not supported")
    return value[0]
