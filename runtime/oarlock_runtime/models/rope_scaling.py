"""Rope scaling from a configuration: Hugging Face's `rope_scaling` / `rope_parameters`, and a GGUF header's keys.

Scalings whose frequencies depend on the length of the running sequence (dynamic, longrope) are refused by name.
"""

from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.spec import RopeSpec

SUPPORTED = ("none", "linear", "llama3", "yarn")


def rope_from_config(config: Fields, max_context: int) -> RopeSpec:
    """From config.json: `rope_parameters` (newer), or `rope_theta` with an optional `rope_scaling`."""
    section = config.section("rope_parameters") or config.section("rope_scaling")
    if section is None:
        return RopeSpec(base=config.number("rope_theta", 10000.0))
    base = section.number("rope_theta", config.number("rope_theta", 10000.0))
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.text(key, "default")
    if kind in ("default", "none"):
        return RopeSpec(base=base)
    if kind == "linear":
        return RopeSpec(base=base, scaling="linear", factor=section.number("factor"))
    original = section.integer(
        "original_max_position_embeddings", config.integer("original_max_position_embeddings", max_context)
    )
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if high <= low:
            raise section.error("high_freq_factor", f"{high:g} is not above low_freq_factor {low:g}")
        return RopeSpec(
            base=base,
            scaling="llama3",
            factor=section.number("factor"),
            original_context=original,
            low_freq=low,
            high_freq=high,
        )
    if kind == "yarn":
        factor = section.number("factor")
        return RopeSpec(
            base=base,
            scaling="yarn",
            factor=factor,
            original_context=original,
            beta_fast=section.number("beta_fast", 32.0),
            beta_slow=section.number("beta_slow", 1.0),
            attention_factor=_attention_factor(section, factor),
            truncate=section.flag("truncate", True),
        )
    raise section.error(key, f"{kind!r} is not supported; supported are {', '.join(SUPPORTED)}")


def rope_from_gguf(header: Fields, max_context: int, divisors: tuple[float, ...]) -> RopeSpec:
    """From a GGUF header whose Fields begin at the architecture's prefix; divisors: its rope_freqs tensor."""
    base = header.number("rope.freq_base", 10000.0)
    kind = header.text("rope.scaling.type", "none")
    if divisors:
        if kind not in ("none", "llama3"):
            raise header.error("rope.scaling.type", f"{kind!r} with a rope_freqs.weight tensor is not supported")
        return RopeSpec(base=base, scaling="divisors", divisors=divisors)
    if kind == "none":
        linear = header.number("rope.scale_linear", 1.0)
        return RopeSpec(base=base) if linear == 1.0 else RopeSpec(base=base, scaling="linear", factor=linear)
    if kind == "linear":
        return RopeSpec(base=base, scaling="linear", factor=header.number("rope.scaling.factor"))
    if kind == "yarn":
        factor = header.number("rope.scaling.factor")
        return RopeSpec(
            base=base,
            scaling="yarn",
            factor=factor,
            original_context=header.integer("rope.scaling.original_context_length", max_context),
            beta_fast=header.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=header.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=header.number("rope.scaling.attn_factor", 1.0)
            * RopeSpec.yarn_attention_factor(factor, 1.0),
        )
    raise header.error("rope.scaling.type", f"{kind!r} is not supported; supported are none, linear, yarn")


def _attention_factor(section: Fields, factor: float) -> float:
    """What yarn multiplies cosines and sines by, so that attention stays as sharp over the longer context."""
    if section.has("attention_factor"):
        return section.number("attention_factor")
    if section.has("mscale") and section.has("mscale_all_dim"):
        return RopeSpec.yarn_attention_factor(factor, section.number("mscale")) / RopeSpec.yarn_attention_factor(
            factor, section.number("mscale_all_dim")
        )
    return RopeSpec.yarn_attention_factor(factor, 1.0)
