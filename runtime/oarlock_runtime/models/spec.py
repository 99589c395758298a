"""What a decoder is: one dataclass that describes every model we run, and the rotary table that follows from it.

The engine builds its executor from a `ModelSpec`; families.py makes one from a config.json or a GGUF header.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding over the whole head, halves paired (i with i + head_dim / 2).

    scaling is one of:
    - "none": frequencies base ** (-2 i / head_dim)
    - "linear": all divided by `factor`
    - "llama3": low ones divided by `factor`, high ones kept, blended in between (`low_freq`, `high_freq`,
      `original_context`)
    - "yarn": blended between the dimensions that turn `beta_fast` and `beta_slow` times over `original_context`
      tokens; cosines and sines multiplied by `attention_factor`
    - "divisors": frequency i divided by divisors[i] (how a GGUF carries llama3 scaling)
    """

    base: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = field(default=(), repr=False)

    @staticmethod
    def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
        """Yarn's own attention factor, where a model doesn't give one: attention stays as sharp over more tokens."""
        return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


@dataclass(frozen=True)
class ModelSpec:
    """Shapes and constants of a dense decoder: RMS norms, rotary GQA attention, SwiGLU.

    `sliding_window` counts the keys that a query sees, itself included; 0 = all before it. `attention_scale` 0 means
    1 / sqrt(head_dim). `max_context` is what the checkpoint was trained for, in tokens.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context: int
    norm_epsilon: float
    rope: RopeSpec = RopeSpec()
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    sliding_window: int = 0
    attention_scale: float = 0.0
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.attention_scale or 1.0 / math.sqrt(self.head_dim)

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(math.prod(shape) for shape in tensor_shapes(self).values())

    def kv_bytes_per_token(self, item_bytes: int = 2) -> int:
        """Bytes of keys and values that one token keeps over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * item_bytes

    def executor_config(self, max_context: int) -> dict[str, Any]:
        """The part of the compiled executor's configuration that the model decides."""
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "ffn": self.ffn,
            "vocab": self.vocab,
            "norm_epsilon": self.norm_epsilon,
            "qk_norm": self.qk_norm,
            "sliding_window": self.sliding_window,
            "attention_scale": self.scale,
            "rotary": rotary_table(self, max_context),
        }


def layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors by our names, matrices as (outputs, inputs)."""
    q_rows, kv_rows = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (spec.hidden,),
        "q": (q_rows, spec.hidden),
        "k": (kv_rows, spec.hidden),
        "v": (kv_rows, spec.hidden),
        "o": (spec.hidden, q_rows),
        "ffn_norm": (spec.hidden,),
        "gate": (spec.ffn, spec.hidden),
        "up": (spec.ffn, spec.hidden),
        "down": (spec.hidden, spec.ffn),
    }
    if spec.qkv_bias:
        shapes |= {"q_bias": (q_rows,), "k_bias": (kv_rows,), "v_bias": (kv_rows,)}
    if spec.qk_norm:
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    return shapes


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by canonical name, in the order in which a step uses them."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (spec.vocab, spec.hidden)}
    for layer in range(spec.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in layer_shapes(spec).items()}
    shapes["final_norm"] = (spec.hidden,)
    if not spec.tied_embeddings:
        shapes["lm_head"] = (spec.vocab, spec.hidden)
    return shapes


def rotary_frequencies(spec: ModelSpec) -> npt.NDArray[np.float64]:
    """Radians a position for each of the head_dim / 2 pairs."""
    rope = spec.rope
    half = spec.head_dim // 2
    pair = np.arange(half, dtype=np.float64)
    plain = rope.base ** (-pair / half)
    if rope.scaling == "none":
        return plain
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "divisors":
        return plain / np.asarray(rope.divisors, dtype=np.float64)
    if rope.scaling == "llama3":
        turns = rope.original_context * plain / (2 * math.pi)
        kept = np.clip((turns - rope.low_freq) / (rope.high_freq - rope.low_freq), 0.0, 1.0)
        return plain * (kept + (1.0 - kept) / rope.factor)
    if rope.scaling == "yarn":
        return plain * _yarn_share(spec, pair)
    raise ValueError(f"unknown rope scaling {rope.scaling!r}")


def _yarn_share(spec: ModelSpec, pair: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    rope = spec.rope

    def pair_that_turns(times: float) -> float:
        return spec.head_dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.base))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.head_dim - 1)
    interpolated = np.clip((pair - first) / max(last - first, 0.001), 0.0, 1.0)
    return 1.0 - interpolated + interpolated / rope.factor


def rotary_table(spec: ModelSpec, max_context: int) -> npt.NDArray[np.float32]:
    """float32 [max_context, head_dim]: row p holds head_dim / 2 cosines, then as many sines, of position p.

    The yarn attention factor is multiplied in, so that it needs no place of its own in the attention kernels.
    """
    # Angles are rounded to float32 before the cosine, because that is how models are trained.
    frequencies = rotary_frequencies(spec).astype(np.float32)
    angles = np.arange(max_context, dtype=np.float32)[:, None] * frequencies
    table = np.empty((max_context, spec.head_dim), np.float32)
    np.cos(angles, out=table[:, : spec.head_dim // 2])
    np.sin(angles, out=table[:, spec.head_dim // 2 :])
    if spec.rope.attention_factor != 1.0:
        table *= np.float32(spec.rope.attention_factor)
    return table
