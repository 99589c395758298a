"""Splits a model over ranks as PaddleNLP's tensor parallelism does, without the product's own notion of that.

PaddleNLP's linear layers hold [inputs, outputs]. Those that begin a block are cut along their outputs, those that end
it along their inputs, the vocabulary along its tokens where it divides, biases along their outputs; norms are whole in
every rank. Its fused layers then lay a rank's own q, k and v, and its gate and up, side by side.
"""

import json
from pathlib import Path

import numpy as np
from support.paddle_files import write_program

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.config_writer import plain_config_of
from oarlock_runtime.models.tensors import Array


def rank_parameters(checkpoint: Checkpoint, rank: int, ranks: int) -> dict[str, Array]:
    """Rank `rank`'s parameters of a dense model, by PaddleNLP's names."""
    family, vocab = checkpoint.spec.family, checkpoint.spec.vocab

    def own(array: Array, axis: int) -> Array:
        return np.split(array, ranks, axis)[rank]

    def linear(name: str, axis: int) -> Array:
        return own(np.ascontiguousarray(checkpoint[name].read().T), axis)

    cut = (lambda array: own(array, 0)) if vocab % ranks == 0 else (lambda array: array)
    found = {
        "vocab_parallel_embedding_0.w_0": cut(checkpoint["embed"].read()),
        "create_parameter_0.w_0": checkpoint["final_norm"].read(),
    }
    if not checkpoint.spec.tied_embeddings:
        found[f"{family}_lm_head_0.w_0"] = cut(checkpoint["lm_head"].read()).T
    for layer in range(checkpoint.spec.layers):
        ours, theirs = f"layers.{layer}.", f"fuse{family}.{layer}."
        query_key_value = np.concatenate([linear(ours + part, 1) for part in "qkv"], axis=-1)
        found[theirs + "qkv_weight"] = query_key_value.transpose(1, 0)
        found[theirs + "out_proj_weight"] = linear(ours + "o", 0)
        found[theirs + "ffn1_weight"] = np.concatenate([linear(ours + part, 1) for part in ("gate", "up")], axis=-1)
        found[theirs + "ffn2_weight"] = linear(ours + "down", 0)
        found[theirs + "ln_scale"] = checkpoint[ours + "attn_norm"].read()
        found[theirs + "ffn_ln_scale"] = checkpoint[ours + "ffn_norm"].read()
        if checkpoint.spec.qkv_bias:
            biases = [own(checkpoint[ours + part].read(), 0) for part in ("q_bias", "k_bias", "v_bias")]
            found[theirs + "qkv_bias"] = np.concatenate(biases)
        if checkpoint.spec.qk_norm:
            for part in ("q_norm", "k_norm"):
                found[theirs + part + "_weight"] = checkpoint[ours + part].read()
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def split_directory(out: Path, checkpoint: Checkpoint, ranks: int, present: range | None = None) -> Path:
    """The directory of a model cut for `ranks` ranks, with those of `present` alone (all by default)."""
    for rank in range(ranks) if present is None else present:
        write_program(out / f"rank_{rank}", rank_parameters(checkpoint, rank, ranks))
    values = plain_config_of(checkpoint, checkpoint["layers.0.q"].format) | {"tensor_parallel_degree": ranks}
    (out / "config.json").write_text(json.dumps(values))
    return out
