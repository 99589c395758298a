"""The decoder in plain float32 numpy: what every kernel, layer and answer is compared with.

One sequence, whole context, no cache; written to be read. Matrices are (outputs, inputs), so a linear layer is x @ w.T.
"""

import sys
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from oarlock_runtime.models.checkpoint import Checkpoint
from oarlock_runtime.models.loading import TILE, span_tiles
from oarlock_runtime.models.spec import ModelSpec, rotary_table

Floats = npt.NDArray[np.float32]


class Reference:
    """A model's forward pass. `weights` maps canonical tensor names to float32 arrays."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Floats]) -> None:
        self.spec = spec
        self.weights = weights
        self.head = weights["embed" if spec.tied_embeddings else "lm_head"]

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "Reference":
        """With the checkpoint's weights, dequantized."""
        return cls(checkpoint.spec, {name: ref.dequantize() for name, ref in checkpoint.tensors()})

    def forward(self, ids: list[int]) -> Floats:
        """Logits float32 [tokens, vocab]: row t is what follows ids[: t + 1]."""
        return self.hidden_states(ids)[-1] @ self.head.T

    def hidden_states(self, ids: list[int]) -> list[Floats]:
        """The residual [tokens, hidden] after the embedding and after every layer, then the final norm's output."""
        rotary = rotary_table(self.spec, len(ids))
        residual = self.weights["embed"][ids]
        states = [residual]
        for layer in range(self.spec.layers):
            residual = residual + self._attention(layer, self._norm(residual, f"layers.{layer}.attn_norm"), rotary)
            residual = residual + self._feed_forward(layer, self._norm(residual, f"layers.{layer}.ffn_norm"))
            states.append(residual)
        return [*states, self._norm(residual, "final_norm")]

    def greedy(self, ids: list[int], count: int, stop: tuple[int, ...] = ()) -> list[int]:
        """The `count` likeliest next tokens, one after the other; fewer when one of `stop` comes."""
        out: list[int] = []
        while len(out) < count:
            last = self.hidden_states(ids + out)[-1][-1]
            out.append(int(np.argmax(self.head @ last)))
            if out[-1] in stop:
                break
        return out

    def _attention(self, layer: int, x: Floats, rotary: Floats) -> Floats:
        spec, w = self.spec, self.weights
        tokens, group = len(x), spec.heads // spec.kv_heads
        q, k, v = (x @ w[f"layers.{layer}.{name}"].T for name in "qkv")
        if spec.qkv_bias:
            q, k, v = (y + w[f"layers.{layer}.{name}_bias"] for name, y in zip("qkv", (q, k, v), strict=True))
        q = q.reshape(tokens, spec.heads, spec.head_dim)
        k = k.reshape(tokens, spec.kv_heads, spec.head_dim)
        v = v.reshape(tokens, spec.kv_heads, spec.head_dim)
        if spec.qk_norm:
            q, k = self._norm(q, f"layers.{layer}.q_norm"), self._norm(k, f"layers.{layer}.k_norm")
        q, k = rotate(q, rotary), rotate(k, rotary)
        out = np.empty_like(q)
        unseen = ~visible(tokens, spec.sliding_window)
        for head in range(spec.heads):
            scores = q[:, head] @ k[:, head // group].T * np.float32(spec.scale)
            scores[unseen] = -np.inf
            out[:, head] = softmax(scores) @ v[:, head // group]
        return out.reshape(tokens, -1) @ w[f"layers.{layer}.o"].T

    def _feed_forward(self, layer: int, x: Floats) -> Floats:
        gate = x @ self.weights[f"layers.{layer}.gate"].T
        up = x @ self.weights[f"layers.{layer}.up"].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"layers.{layer}.down"].T

    def _norm(self, x: Floats, name: str) -> Floats:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + np.float32(self.spec.norm_epsilon)) * self.weights[name]


def spans(matrix: Floats) -> Iterator[Floats]:
    """Its columns by those whose weights share a scale, as views."""
    width = span_tiles(matrix.shape[1]) * TILE
    for start in range(0, matrix.shape[1], width):
        yield matrix[:, start : start + width]


def round_to_int8(matrix: Floats) -> None:
    """Each span of a row to the nearest of 255 values, evenly spaced up to its largest; in place."""
    for part in spans(matrix):
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(127)
        part[:] = np.rint(np.divide(part, scale, out=np.zeros_like(part), where=scale > 0)) * scale


def round_to_int4(matrix: Floats) -> None:
    """Each 32 columns of a row to 16 values, evenly spaced by a multiple of their span's scale; in place.

    Of two scales the one with the least squared error, and of two steps for each group.
    """
    for part in spans(matrix):
        groups = part.reshape(len(part), -1, 32)
        least, greatest = groups.min(axis=2), groups.max(axis=2)
        largest = np.maximum(np.maximum(-least, greatest) / np.float32(127), (greatest - least) / np.float32(15 * 15))
        most = largest.max(axis=1)[:, None, None]
        most[most == 0] = 1  # all weights are zero
        best, error = np.zeros_like(groups), np.full((len(part), 1, 1), np.inf, np.float32)
        for stretch in (1.0, 1.05):
            scale = most * np.float32(stretch)
            rounded, missed = fit_groups(groups / scale)
            missed = missed.sum(axis=1, keepdims=True) * scale**2
            best = np.where(missed < error, rounded * scale, best)
            error = np.minimum(missed, error)
        part[:] = best.reshape(part.shape)


def fit_groups(groups: Floats) -> tuple[Floats, Floats]:
    """Groups [..., 32] in units of their span's scale as step * code + offset, and their squared errors [..., 1]."""
    least, greatest = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    even = np.trunc((greatest - least) / 15)
    best, error = np.zeros_like(groups), np.full(least.shape, np.inf, np.float32)
    for step in (np.minimum(even, 15), np.minimum(even + 1, 15)):
        codes = nearest_codes(groups, step, fitting_offset((least + greatest - 15 * step) / 2, step))
        offset = fitting_offset((groups - step * codes).mean(axis=-1, keepdims=True), step)
        rounded = step * nearest_codes(groups, step, offset) + offset
        missed = ((groups - rounded) ** 2).sum(axis=-1, keepdims=True)
        best = np.where(missed < error, rounded, best)
        error = np.minimum(missed, error)
    return best, error


def fitting_offset(value: Floats, step: Floats) -> Floats:
    """The nearest integer that keeps 16 values, `step` apart, within 8 bits."""
    return np.clip(np.rint(value), -128, 127 - 15 * step)


def nearest_codes(groups: Floats, step: Floats, offset: Floats) -> Floats:
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    return np.rint(np.clip((groups - offset) * inverse, 0, 15))


def rotate(x: Floats, rotary: Floats) -> Floats:
    """Turns pairs (i, i + head_dim / 2) of x [tokens, heads, head_dim] by their position's angles."""
    half = x.shape[-1] // 2
    cos, sin = rotary[:, None, :half], rotary[:, None, half:]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(tokens: int, window: int) -> npt.NDArray[np.bool_]:
    """[query, key]: keys up to the query's own, at most `window` of them (0 = all)."""
    query, key = np.arange(tokens)[:, None], np.arange(tokens)[None, :]
    return (key <= query) & (query - key < (window or sys.maxsize))


def softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
