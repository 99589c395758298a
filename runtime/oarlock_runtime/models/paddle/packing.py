"""The byte layouts of Paddle's weight-only quantized matrices, to and from plain codes.

A matrix of N outputs and K inputs is held as int8 or int4 codes of one scale an output, or one for every 64 or 128
inputs of it. Paddle stores the codes for tensor cores: "sm75" (Turing to Hopper) goes by outputs, interleaves two
(int8) or four (int4) of them in tiles of 64 inputs and permutes the inputs of each group of 16 or 32; "sm70" (Volta)
goes by inputs. Both add a bias to the codes and reorder each 4 bytes. Nothing in a file tells the two apart, so
`likelier_packing` looks at what only the right one gives: a code of full size in every scale's reach. Used by the
engine process and the command line; pure functions of arrays.
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

PACKINGS = ("sm75", "sm70")
LIMITS = {8: 127, 4: 7}
UNIT = 64  # N and K are multiples of it
ALIGN = 8  # outputs that are unpacked together


def stored_shape(bits: int, outputs: int, inputs: int) -> tuple[int, int]:
    """The dimensions that a program declares for a packed matrix, whatever its packing."""
    return outputs * bits // 8, inputs


def pack(codes: Codes, bits: int, packing: str = "sm75") -> Bytes:
    """Codes [outputs, inputs] to the bytes Paddle stores, in stored_shape."""
    n, k = codes.shape
    biased = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if packing == "sm70":
        units = biased.T.reshape(k, n // 4, 2, 2) if bits == 8 else biased.T.reshape(k, n // 8, 4, 2)
        stream = units.swapaxes(-1, -2)
    elif bits == 8:
        stream = biased.reshape(n // 2, 2, k // 64, 4, 2, 4, 2).transpose(0, 2, 1, 3, 5, 6, 4)
    else:
        stream = biased.reshape(n // 4, 4, k // 64, 2, 4, 4, 2).transpose(0, 2, 1, 3, 5, 6, 4)
    flat: Bytes = np.ascontiguousarray(stream).reshape(-1)
    if bits == 4:
        flat = flat[0::2] | (flat[1::2] << np.uint8(4))
    return flat.reshape(stored_shape(bits, n, k))


def unpack(stored: Bytes, bits: int, packing: str, start: int = 0, stop: int | None = None) -> Codes:
    """Codes [stop - start, inputs] of some outputs of a packed matrix."""
    n, k = stored.shape[0] * 8 // bits, stored.shape[1]
    stop = n if stop is None else stop
    first, last = start // ALIGN * ALIGN, -(-stop // ALIGN) * ALIGN
    rows = last - first
    stream = stored.reshape(n, k * bits // 8)[first:last]
    if packing == "sm70":
        stream = stored.reshape(k, n * bits // 8)[:, first * bits // 8 : last * bits // 8]
    if bits == 4:
        stream = np.stack([stream & 15, stream >> 4], axis=-1)
    shape, order = unpacking(bits, packing, rows, k)
    biased = stream.reshape(shape).transpose(order)
    biased = biased.reshape(k, rows).T if packing == "sm70" else biased.reshape(rows, k)
    codes = (np.ascontiguousarray(biased) - np.uint8(1 << (bits - 1))).view(np.int8)
    return codes[start - first : stop - first]


def unpacking(bits: int, packing: str, outputs: int, inputs: int) -> tuple[list[int], list[int]]:
    """How codes lie in the stored order: the shape of that as an array, and the order of its axes that sorts them.

    Sorted they are [outputs, inputs] for "sm75" and [inputs, outputs] for "sm70".
    """
    if packing == "sm70":
        # The middle bytes of every four are swapped; of eight nibbles the even ones come first.
        return ([inputs, outputs // 4, 2, 2] if bits == 8 else [inputs, outputs // 8, 2, 4]), [0, 1, 3, 2]
    # Two or four outputs to a tile of 64 inputs; 16 inputs are quads, each of two pairs that are 8 apart, and 32 are
    # octets, each of four such pairs; and within quads and octets as for sm70.
    shape = [outputs // 2, inputs // 64, 2, 4, 4, 2, 2] if bits == 8 else [outputs // 4, inputs // 64, 4, 2, 4, 2, 4]
    return shape, [0, 2, 1, 3, 6, 4, 5]


def quantize(weight: npt.NDArray[np.float32], bits: int, dtype: str, group: int = -1) -> tuple[Codes, npt.NDArray[Any]]:
    """Codes and scales of weight [outputs, inputs] by Paddle's rule.

    dtype: "f16" or "bf16", of the scales; the codes are of the scale as it is stored. Scales are [outputs], or
    [ceil(inputs / group), outputs] where a group of inputs has its own.
    """
    n, k = weight.shape
    limit = LIMITS[bits]
    size = k if group < 0 else group
    codes = np.empty((n, k), np.int8)
    scales = np.empty((-(-k // size), n), np.float16 if dtype == "f16" else ml_dtypes.bfloat16)
    for index in range(len(scales)):
        part = weight[:, index * size : (index + 1) * size]
        scale = np.abs(part).max(axis=1) / np.float32(limit)
        scales[index] = scale.astype(scales.dtype)
        stored = scales[index].astype(np.float32)[:, None]
        ratio = np.divide(part, stored, out=np.zeros_like(part), where=stored != 0)
        whole = np.trunc(ratio + np.copysign(np.float32(0.5), ratio))  # halves away from zero
        codes[:, index * size : (index + 1) * size] = np.clip(whole, -limit, limit)
    return codes, scales[0] if group < 0 else scales


def q8_0_rows(codes: Codes, scales: npt.NDArray[np.float16]) -> Bytes:
    """Codes [n, k] and a scale for every 32 of them [n, k / 32] as GGUF's q8_0 blocks, [n, k / 32 * 34]."""
    n, blocks = scales.shape
    out = np.empty((n, blocks, 34), np.uint8)
    out[..., :2] = scales[..., None].view(np.uint8)
    out[..., 2:] = codes.reshape(n, blocks, 32).view(np.uint8)
    return out.reshape(n, -1)


def q4_0_rows(codes: Codes, scales: npt.NDArray[np.float16]) -> Bytes:
    """Codes in [-8, 7] and a scale for every 32 of them as GGUF's q4_0 blocks, [n, k / 32 * 18]."""
    n, blocks = scales.shape
    out = np.empty((n, blocks, 18), np.uint8)
    out[..., :2] = scales[..., None].view(np.uint8)
    halves = (codes.reshape(n, blocks, 2, 16) + np.int8(8)).view(np.uint8)
    out[..., 2:] = halves[..., 0, :] | (halves[..., 1, :] << 4)
    return out.reshape(n, -1)


def extremes_missed(codes: Codes, bits: int, groups: int) -> float:
    """The share of (output, group of inputs) that no code of full size lies in; 0 in matrices that were quantized."""
    n, k = codes.shape
    size = -(-k // groups)
    whole = codes[:, : k // size * size].reshape(n, -1, size)
    largest = np.abs(whole.astype(np.int16)).max(axis=2)
    used = largest > 0
    return float(((largest < LIMITS[bits]) & used).sum() / max(1, used.sum()))


def likelier_packing(stored: Bytes, bits: int, groups: int) -> str | None:
    """Which packing a matrix is in, or None if that can't be told. groups: scales an output."""
    missed = {packing: extremes_missed(unpack(stored, bits, packing), bits, groups) for packing in PACKINGS}
    best, other = sorted(PACKINGS, key=lambda packing: missed[packing])
    return best if missed[best] < 0.5 * missed[other] else None
