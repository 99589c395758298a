"""The byte layouts of weight-only matrices, by themselves and against Paddle's own quantizer."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oarlock_runtime.models.paddle.packing import (
    LIMITS,
    PACKINGS,
    likelier_packing,
    pack,
    q4_0_rows,
    q8_0_rows,
    quantize,
    stored_shape,
    unpack,
)

SIZES = st.sampled_from((64, 128, 192, 320))


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.sampled_from((8, 4)), st.sampled_from(PACKINGS), st.data())
def test_unpacking_undoes_packing_for_any_outputs(n: int, k: int, bits: int, packing: str, data: st.DataObject) -> None:
    codes = np.random.default_rng(n * k).integers(-LIMITS[bits] - 1, LIMITS[bits] + 1, (n, k), np.int8)
    stored = pack(codes, bits, packing)
    assert stored.shape == stored_shape(bits, n, k)
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    np.testing.assert_array_equal(unpack(stored, bits, packing, start, stop), codes[start:stop])


def test_the_first_bytes_of_each_packing() -> None:
    # Output 0 counts its inputs, all others are 0, so the stored bytes show where its inputs went.
    codes = np.zeros((64, 64), np.int8)
    codes[0] = np.arange(64)
    assert (pack(codes, 8).reshape(-1)[:8] ^ 0x80).tolist() == [0, 8, 1, 9, 2, 10, 3, 11]
    assert (pack(codes, 8, "sm70").reshape(64, 64)[:4, 0] ^ 0x80).tolist() == [0, 1, 2, 3]
    codes[0] = np.arange(64) % 16 - 8
    nibbles = pack(codes, 4).reshape(-1)[:8]
    assert [int(value) for byte in nibbles for value in (byte & 15, byte >> 4)][:8] == [0, 8, 0, 8, 1, 9, 1, 9]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("group", [-1, 64])
def test_the_packing_shows_in_the_codes(bits: int, packing: str, group: int) -> None:
    weight = np.random.default_rng(3).standard_normal((128, 192)).astype(np.float32)
    weight[5] = 0  # a dead channel has no code of full size
    codes, _ = quantize(weight, bits, "bf16", group)
    assert likelier_packing(pack(codes, bits, packing), bits, 1 if group < 0 else 3) == packing


def test_a_packing_that_does_not_show_is_not_guessed() -> None:
    assert likelier_packing(np.full((64, 64), 0x81, np.uint8), 8, 1) is None


@pytest.mark.parametrize(("bits", "rows"), [(8, q8_0_rows), (4, q4_0_rows)])
def test_blocks_hold_the_codes_as_they_are(bits: int, rows: object) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    draw = np.random.default_rng(1)
    codes = draw.integers(-LIMITS[bits] - 1, LIMITS[bits] + 1, (6, 96), np.int8)
    scales = draw.uniform(1e-4, 1e-2, (6, 3)).astype(np.float16)
    kind = GGMLQuantizationType.Q8_0 if bits == 8 else GGMLQuantizationType.Q4_0
    blocks = (q8_0_rows if bits == 8 else q4_0_rows)(codes, scales)
    expected = codes * np.repeat(scales.astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(dequantize(blocks, kind), expected)


@pytest.mark.conformance(32)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_paddle_quantizes_and_packs_to_the_same_bytes(bits: int, dtype: str) -> None:
    paddle = pytest.importorskip("paddle", reason="needs the paddle extra")
    for n, k in ((64, 128), (192, 512), (320, 64)):
        drawn = np.random.default_rng(n).standard_normal((k, n)).astype(np.float32) * 0.03
        drawn = drawn.astype(np.float16 if dtype == "f16" else ml_dtypes.bfloat16).astype(np.float32)
        weight = paddle.to_tensor(drawn).astype("float16" if dtype == "f16" else "bfloat16")
        for group in (-1, 64, 128):
            if group > k:
                continue
            codes, scales = quantize(np.ascontiguousarray(drawn.T), bits, dtype, group)
            for arch, packing in ((70, "sm70"), (75, "sm75"), (80, "sm75"), (86, "sm75"), (89, "sm75"), (90, "sm75")):
                theirs, their_scales = paddle.nn.quant.weight_quantize(
                    weight, algo=f"weight_only_int{bits}", arch=arch, group_size=group
                )
                np.testing.assert_array_equal(pack(codes, bits, packing), theirs.numpy().view(np.uint8))
                np.testing.assert_array_equal(scales.astype(np.float32), their_scales.astype("float32").numpy())
