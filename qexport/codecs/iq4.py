"""IQ4_NL and IQ4_XS: 32 values share a scale, each is one of 16 levels that lie closer together near zero.

A value is ``scale * level``, the levels those of :data:`~qexport.codecs.decode_blocks.IQ4_VALUES`, from -127
to 113. IQ4_NL stores each scale as float16; IQ4_XS has 8 of them in a block, ``d * (s - 32)``:

    d            float16
    16 bits      IQ4_XS only: the upper two bits of the eight ``s``
    4 bytes      IQ4_XS only: their lower four
    16 bytes     for each 32 values: byte ``i`` holds the number of value ``i``'s level and, above it, that of
                 value ``i + 16``

The scale is searched: the value of largest magnitude is mapped to 127, then to ``k - 127`` for ``k`` from
-7 to 7; each gives levels, for those the scale of least weighted squared error is
``sum(w l x) / sum(w l l)``, and a later one has to be better. With importance a value's weight is the
column's times ``sqrt(sigma2 + x * x)``, ``sigma2`` twice the mean square of the block, without ``x * x``.
IQ4_XS then rounds its scales, the largest being -32, and finds the levels again by the scales before ``d`` is
rounded to float16.

The bytes are those of ``quantize_row_iq4_nl_impl`` with ``ntry`` 7 in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c
Its ``best_index_int8`` is a search by halves that ends in comparing two distances; levels are whole, so the
upper one begins exactly in the middle of two, and a NaN ends at the last.

Left out: values that are not finite, and blocks whose scale float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.decode_blocks import IQ4_VALUES
from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import half_bits, signed_code
from qexport.codecs.lanes import LANES, Lanes, any_lane, load, root, select, splat, splat_int, store, to_float
from qexport.codecs.scale_search import NOTHING, largest
from qexport.codecs.tiles import is_finite, put_half, read_tile, scratch, write_blocks

_BLOCK, _SUBS, _SIZE = 256, 8, 32
_NBYTES, _HALVES = 136, 9  # bytes of a block of IQ4_XS, 16-bit halves of one of IQ4_NL
_LOWEST, _TRIES, _SCALE_TOP = -127, 7, 32
LEVELS = IQ4_VALUES
MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
"""Where the next level begins."""


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    return int(_encode(halves, words, importance, type_name == "IQ4_XS", out))


@compiled
def _encode(
    halves: np.ndarray, words: np.ndarray, importance: np.ndarray, together: bool, out: np.ndarray
) -> int:
    tile, rest = scratch(_BLOCK, LANES), scratch(LANES, 16).view(np.uint8)
    weights, scales = scratch(_SIZE, LANES), scratch(_SUBS, LANES)
    packed = scratch(48, LANES).view(np.int32)
    bad, blocks = 0, halves.shape[1] // _SIZE
    for first in range(0, len(out), LANES):
        for group in range(0, blocks, _SUBS):
            count = min(_SUBS, blocks - group)
            column = group * _SIZE
            read_tile(halves, words, first, column, count * _SIZE, tile)
            bad += 1 - is_finite(tile[: count * _SIZE])
            sigma2 = _twice_mean_square(tile, 0, _BLOCK) if together else splat(0)
            for sub in range(count):
                start = sub * _SIZE
                if not together:
                    sigma2 = _twice_mean_square(tile, start, _SIZE)
                for i in range(_SIZE):
                    x = load(tile, start + i)
                    if len(importance):
                        store(weights, i, importance[column + start + i] * root(sigma2 + x * x))
                    else:
                        store(weights, i, x * x)
                store(scales, sub, _search(tile, start, weights))
            if together:
                bad += _pack_block(tile, scales, packed)
                write_blocks(packed, rest, out, first, group // _SUBS * _NBYTES, _NBYTES)
                continue
            for sub in range(count):
                scale = load(scales, sub)
                half = half_bits(scale)
                bad += int(any_lane((half & 0x7C00) == 0x7C00))
                put_half(packed, sub * _HALVES, half)
                _pack(tile, sub * _SIZE, select(scale != 0, 1 / scale, 0), packed, sub * _HALVES + 1)
            write_blocks(packed, rest, out, first, group * _HALVES * 2, count * _HALVES * 2)
    return bad


@compiled
def _twice_mean_square(tile: np.ndarray, start: int, count: int) -> Lanes:
    total = splat(0)
    for i in range(start, start + count):
        x = load(tile, i)
        total = total + x * x
    return total * np.float32(2 / count)


@compiled
def _search(tile: np.ndarray, start: int, weights: np.ndarray) -> Lanes:
    """The best scale of 32 values; 0 where all are as good as zero."""
    size, value = largest(tile, start, _SIZE)
    sum_xl, sum_l2 = _sums(tile, start, weights, 1 / (value / -_LOWEST))
    scale = select(sum_l2 > 0, sum_xl / sum_l2, 0)  # what the others have to beat
    best = scale * sum_xl
    for k in range(-_TRIES, _TRIES + 1):
        sum_xl, sum_l2 = _sums(tile, start, weights, splat(k + _LOWEST) / value)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        ratio = sum_xl / sum_l2
        scale = select(better, ratio, scale)
        best = select(better, ratio * sum_xl, best)
    return select(size < NOTHING, 0, scale)


@compiled
def _sums(tile: np.ndarray, start: int, weights: np.ndarray, inverse: Lanes) -> tuple[Lanes, Lanes]:
    """``sum(w l x)`` and ``sum(w l l)`` of the levels that ``inverse`` gives."""
    sum_xl, sum_l2 = splat(0), splat(0)
    for i in range(_SIZE):
        x = load(tile, start + i)
        level = nearest_level(inverse * x)
        weighted = load(weights, i) * level
        sum_xl = sum_xl + weighted * x
        sum_l2 = sum_l2 + weighted * level
    return sum_xl, sum_l2


@compiled
def nearest_level(value: Lanes) -> Lanes:
    """The nearest level, the upper one of two that are as near."""
    level = splat(LEVELS[0])
    for k in range(15):
        level = select(value < MIDDLES[k], level, LEVELS[k + 1])
    return level


@compiled
def _number_of(value: Lanes) -> Lanes:
    """The number of the nearest level."""
    number = splat_int(0)
    for k in range(15):
        number = select(value < MIDDLES[k], number, k + 1)
    return number


@compiled
def _pack(tile: np.ndarray, start: int, inverse: Lanes, packed: np.ndarray, half: int) -> None:
    """The levels of 32 values, from half ``half`` of ``packed`` on."""
    for i in range(0, 16, 2):
        bits = splat_int(0)
        for place in range(4):
            at = start + i + place // 2 + place % 2 * 16
            bits = bits | _number_of(inverse * load(tile, at)) << 4 * place
        put_half(packed, half + i // 2, bits)


@compiled
def _pack_block(tile: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> int:
    """A block of IQ4_XS; returns 1 where a float16 cannot hold its scale."""
    _, value = largest(scales, 0, _SUBS)
    d = -value / _SCALE_TOP
    inverse = select(d != 0, 1 / d, 0)
    lower, upper = splat_int(0), splat_int(0)
    for sub in range(_SUBS):
        code = signed_code(inverse * load(scales, sub), _SCALE_TOP)
        scale = d * to_float(code)
        _pack(tile, sub * _SIZE, select(scale != 0, 1 / scale, 0), packed, 4 + 8 * sub)
        lower = lower | ((code + _SCALE_TOP) & 15) << 4 * sub
        upper = upper | (code + _SCALE_TOP) >> 4 << 2 * sub
    half = half_bits(d)
    store(packed, 0, half | upper << 16)
    store(packed, 1, lower)
    return int(any_lane((half & 0x7C00) == 0x7C00))
