"""Builds a decoder of Paddle's own operators, from token ids to logits, and saves it as a static graph.

Runs in the command line, for `oarlock model export --to paddle`. The only module that imports Paddle. The graph takes
`input_ids`, int64 [batch, tokens], and gives float32 logits [batch, tokens, vocabulary]. It computes in float32,
whatever the type of its parameters, because that runs on every machine, and unpacks quantized matrices itself. With
several ranks it holds the collective operators (ring 0) that a rank's program needs.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from oarlock_runtime.models.paddle.layout import BIAS, SCALE
from oarlock_runtime.models.paddle.packing import unpacking
from oarlock_runtime.models.paddle.parts import NORM, Parts
from oarlock_runtime.models.spec import rotary_frequencies
from oarlock_runtime.models.tensors import Array

RING, SUM = 0, 0
NAMES = {np.dtype("f4"): "float32", np.dtype("f2"): "float16", np.dtype("u2"): "bfloat16", np.dtype("i1"): "int8"}


class StaticDecoder(paddle.nn.Layer):
    """One rank of a decoder, whose parameters have PaddleNLP's names."""

    def __init__(self, parts: Parts, rank: int) -> None:
        super().__init__()
        self.parts = parts
        self.rank = rank
        self.weights = {name: self._weight(name, values) for name, values in parts.of_rank(rank)}

    def _weight(self, name: str, values: Array) -> Any:
        weight = self.create_parameter(
            list(values.shape),
            attr=paddle.ParamAttr(name=name, trainable=False),
            dtype=NAMES[values.dtype],
            default_initializer=paddle.nn.initializer.Constant(0),
        )
        weight.set_value(values)
        self.add_parameter(name.replace(".", "_"), weight)
        return weight

    def forward(self, input_ids: Any) -> Any:
        parts, spec = self.parts, self.parts.spec
        first, last = parts.vocabulary(self.rank)
        embedding = self.weights[parts.embed_name]
        if parts.vocab_shared:
            rows = paddle._C_ops.c_embedding(paddle.cast(embedding, "float32"), input_ids, first, spec.vocab)
            hidden = self._sum(rows)
        else:
            hidden = paddle.nn.functional.embedding(input_ids, paddle.cast(embedding, "float32"))
        tokens = paddle.shape(input_ids)[1]
        rotary, mask = self._rotary(tokens), self._mask(tokens)
        for layer in range(spec.layers):
            prefix = f"{parts.prefix}.{layer}."
            normed = self._norm(hidden, prefix + "ln_scale", spec.hidden)
            hidden = hidden + self._sum(self._attention(normed, prefix, rotary, mask))
            normed = self._norm(hidden, prefix + "ffn_ln_scale", spec.hidden)
            hidden = hidden + self._sum(self._feed_forward(normed, prefix))
        hidden = self._norm(hidden, NORM, spec.hidden)
        if spec.tied_embeddings:
            logits = self._product(hidden, embedding, False)
        else:
            logits = self._product(hidden, self.weights[parts.head_name], True)
        if last - first < spec.vocab:
            shares = paddle._C_ops.all_gather(logits, RING, parts.ranks)  # one behind the other along the batch
            shares = paddle.reshape(shares, [parts.ranks, -1, tokens, last - first])
            logits = paddle.reshape(paddle.transpose(shares, [1, 2, 0, 3]), [-1, tokens, spec.vocab])
        return logits

    def _attention(self, hidden: Any, prefix: str, rotary: tuple[Any, Any], mask: Any) -> Any:
        spec, size = self.parts.spec, self.parts.spec.head_dim
        both = self._linear(hidden, prefix + "qkv_weight", False)
        if spec.qkv_bias:
            both = both + paddle.cast(self.weights[prefix + BIAS], "float32")
        rows = [stop - start for _, start, stop in self.parts.shares.spans(("q", "k", "v"))]
        query, key, value = (
            paddle.transpose(paddle.reshape(part, [0, 0, -1, size]), [0, 2, 1, 3])
            for part in paddle.split(both, rows, axis=-1)
        )
        if spec.qk_norm:
            query = self._norm(query, prefix + "q_norm_weight", size)
            key = self._norm(key, prefix + "k_norm_weight", size)
        query, key = self._turned(query, rotary), self._turned(key, rotary)
        if self.parts.shares.is_whole("k") and self.parts.ranks > 1:
            # Every rank has all keys; these are the ones that its own queries look at.
            share = spec.heads // self.parts.ranks
            heads = [(self.rank * share + head) * spec.kv_heads // spec.heads for head in range(share)]
            key = paddle.index_select(key, paddle.to_tensor(heads), axis=1)
            value = paddle.index_select(value, paddle.to_tensor(heads), axis=1)
        elif spec.heads != spec.kv_heads:
            key = paddle.repeat_interleave(key, spec.heads // spec.kv_heads, axis=1)
            value = paddle.repeat_interleave(value, spec.heads // spec.kv_heads, axis=1)
        scores = paddle.matmul(query, key, transpose_y=True) * spec.scale + mask
        shares = paddle.nn.functional.softmax(scores, axis=-1)
        mixed = paddle.reshape(paddle.transpose(paddle.matmul(shares, value), [0, 2, 1, 3]), [0, 0, rows[0]])
        return self._linear(mixed, prefix + "out_proj_weight", True)

    def _feed_forward(self, hidden: Any, prefix: str) -> Any:
        gate, up = paddle.split(self._linear(hidden, prefix + "ffn1_weight", True), 2, axis=-1)
        return self._linear(paddle.nn.functional.silu(gate) * up, prefix + "ffn2_weight", True)

    def _linear(self, hidden: Any, name: str, turned: bool) -> Any:
        if self.parts.scheme.bits:
            return paddle.matmul(hidden, self._dequantized(name), transpose_y=True)
        return self._product(hidden, self.weights[name], turned)

    def _product(self, hidden: Any, weight: Any, turned: bool) -> Any:
        return paddle.matmul(hidden, paddle.cast(weight, "float32"), transpose_y=not turned)

    def _dequantized(self, name: str) -> Any:
        """A quantized matrix, float32 [outputs, inputs]; the steps are packing.unpack's."""
        scheme, weight, scales = self.parts.scheme, self.weights[name], self.weights[name + SCALE]
        outputs, inputs = scales.shape[-1], weight.shape[1]
        stored = paddle.cast(weight, "float32")
        biased = paddle.where(stored < 0, stored + 256, stored)  # the bytes are unsigned
        if scheme.bits == 4:
            high = paddle.floor(biased / 16)
            biased = paddle.stack([biased - high * 16, high], axis=-1)
        shape, order = unpacking(scheme.bits, scheme.packing, outputs, inputs)
        codes = paddle.transpose(paddle.reshape(biased, shape), order)
        if scheme.packing == "sm70":
            codes = paddle.transpose(paddle.reshape(codes, [inputs, outputs]), [1, 0])
        codes = paddle.reshape(codes, [outputs, inputs]) - (1 << (scheme.bits - 1))
        scales = paddle.cast(scales, "float32")
        if scheme.group < 0:
            return codes * paddle.unsqueeze(scales, 1)
        wide = paddle.repeat_interleave(scales, scheme.group, axis=0)
        return codes * paddle.transpose(wide[:inputs], [1, 0])

    def _norm(self, hidden: Any, name: str, size: int) -> Any:
        scale = paddle.rsqrt(paddle.mean(hidden * hidden, axis=-1, keepdim=True) + self.parts.spec.norm_epsilon)
        return hidden * scale * paddle.cast(self.weights[name], "float32")

    def _rotary(self, tokens: Any) -> tuple[Any, Any]:
        """Cosines and sines, float32 [tokens, head_dim / 2]."""
        frequencies = paddle.to_tensor(rotary_frequencies(self.parts.spec).astype(np.float32).tolist(), dtype="float32")
        angles = paddle.unsqueeze(paddle.cast(paddle.arange(tokens), "float32"), 1) * frequencies
        factor = self.parts.spec.rope.attention_factor
        return paddle.cos(angles) * factor, paddle.sin(angles) * factor

    def _turned(self, heads: Any, rotary: tuple[Any, Any]) -> Any:
        cosine, sine = rotary
        left, right = paddle.split(heads, 2, axis=-1)
        return paddle.concat([left * cosine - right * sine, right * cosine + left * sine], axis=-1)

    def _mask(self, tokens: Any) -> Any:
        """0 where a query sees a key, else a large negative number; float32 [tokens, tokens]."""
        place = paddle.arange(tokens)
        before = paddle.unsqueeze(place, 1) - paddle.unsqueeze(place, 0)
        hidden = before < 0
        if self.parts.spec.sliding_window:
            hidden = paddle.logical_or(hidden, before >= self.parts.spec.sliding_window)
        return paddle.cast(hidden, "float32") * -1e30

    def _sum(self, hidden: Any) -> Any:
        """The sum of what all ranks have."""
        return paddle._C_ops.all_reduce(hidden, RING, SUM) if self.parts.ranks > 1 else hidden


def save_graph(parts: Parts, rank: int, directory: Path) -> None:
    """Writes one rank's model.json and model.pdiparams into `directory`."""
    # Nothing here depends on a tensor's values, so tracing is enough, and Paddle need not rewrite the source.
    paddle.jit.ignore_module([sys.modules[__name__]])
    with paddle.utils.unique_name.guard():  # ranks have parameters of the same names
        decoder = StaticDecoder(parts, rank)
        decoder.eval()
        inputs = [paddle.static.InputSpec([None, None], "int64", name="input_ids")]
        paddle.jit.save(decoder, str(directory / "model"), input_spec=inputs)


def paddle_commit() -> str:
    """The commit that Paddle was built from."""
    return str(paddle.version.commit)
