"""Q8_0: 32 values share a float16 scale, each is a signed byte.

The largest magnitude of a block maps to 127: ``d = amax / 127``, ``q = round(x / d)``, and a block is stored
as ``d`` in float16 followed by 32 bytes. Nothing is searched and no importance is used, so the work is
reading, scaling and rounding, and the type is as good as lossless (8.5 bits per weight).

The bytes are those of ggml's reference encoder (``quantize_row_q8_0_ref`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c), which fixes three details: values
are multiplied by a float32 ``1 / d`` with ``d`` before it is rounded to float16; halves round away from zero;
a zero block has zero bytes, and so has one whose ``1 / d`` is infinite.

Left out: values that are not finite, and blocks whose scale float16 cannot hold; both are counted. ggml
writes blocks that decode to infinity or garbage.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import half_bits
from qexport.codecs.lanes import (
    LANES,
    Lanes,
    absolute,
    any_lane,
    float_lanes,
    load,
    raw_bits,
    select,
    splat,
    to_int,
)
from qexport.codecs.tiles import is_finite, put_half, read_tile, scratch, write_blocks

_SIZE, _PARTS = 32, 17  # values and 16-bit halves of a block
_GROUP = 8  # blocks turned into lanes at once
_INFINITY = np.float32(np.inf)
# The largest float32 below one half. trunc(x + 0.5) would round 0.49999997 up to 1.
_ALMOST_HALF = 0x3EFFFFFF
_SIGN = -0x80000000


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`. Importance is not used."""
    return int(_encode(halves, words, out))


@compiled
def _encode(halves: np.ndarray, words: np.ndarray, out: np.ndarray) -> int:
    tile, rest = scratch(_GROUP * _SIZE, LANES), scratch(LANES, 16).view(np.uint8)
    packed = scratch(80, LANES).view(np.int32)
    blocks = halves.shape[1] // _SIZE
    bad = 0
    for first in range(0, len(out), LANES):
        for group in range(0, blocks, _GROUP):
            count = min(_GROUP, blocks - group)
            read_tile(halves, words, first, group * _SIZE, count * _SIZE, tile)
            bad += 1 - is_finite(tile[: count * _SIZE])
            for block in range(count):
                start = block * _SIZE
                most = splat(0)
                for i in range(start, start + _SIZE):
                    size = absolute(load(tile, i))
                    most = select(size > most, size, most)
                d = most / 127
                inverse = select(d > 0, 1 / d, 0)
                inverse = select(inverse == _INFINITY, 0, inverse)
                half = half_bits(d)
                bad += int(any_lane((half & 0x7C00) == 0x7C00))
                put_half(packed, block * _PARTS, half)
                for i in range(0, _SIZE, 2):
                    low = _rounded(load(tile, start + i) * inverse)
                    high = _rounded(load(tile, start + i + 1) * inverse)
                    put_half(packed, block * _PARTS + 1 + i // 2, low & 0xFF | (high & 0xFF) << 8)
            write_blocks(packed, rest, out, first, group * _PARTS * 2, count * _PARTS * 2)
    return bad


@compiled
def _rounded(value: Lanes) -> Lanes:
    """The nearest whole number, halves away from zero, as int32."""
    return to_int(value + float_lanes(raw_bits(value) & _SIGN | _ALMOST_HALF))
