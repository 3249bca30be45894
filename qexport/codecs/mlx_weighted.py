"""MLX affine groups fitted to importance: scale and bias by weighted least squares, the layout unchanged.

The range of a group is what ``mx.quantize`` goes by. What a model notices is the error of each column times
how strongly that column is driven: ``sum(w * (scale * q + bias - x)**2)`` with ``w`` the mean squared input.
For given codes the best scale and bias are those of a straight line. So a group is tried with MLX's own codes
and with ranges cut or widened by some steps; each try gives codes, a line through them, the line rounded to
the dtype that is stored, and the codes nearest to that. The try with the least error is kept, and MLX's own
where none is clearly better: a group never gets worse.

Thirty-two rows are worked on at once (:mod:`qexport.codecs.lanes`): importance belongs to a column, so all
lanes share it. Readers multiply in float32 with the stored scale and bias, and so does the error here.

Codes chosen together, by the whole covariance of the inputs, of which importance is the diagonal, are those
of :mod:`qexport.codecs.feedback_mlx`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import from_half_bits, half_bits, within
from qexport.codecs.lanes import (
    LANES,
    Lanes,
    absolute,
    all_lanes,
    float_lanes,
    load,
    raw_bits,
    select,
    splat,
    splat_int,
    store,
    to_int,
)
from qexport.codecs.tiles import is_finite, read_tile, scratch, write_blocks

_ROUNDER = np.float32(2.0**23)
_SMALLEST_STEP = np.float32(1e-7)
_SIGN = -0x80000000
_BETTER = np.float32(1 - 2.0**-12)  # sums of float32 know no finer difference
# How many steps more than there are codes the range is cut into: half of them beyond either end.
_MORE_STEPS = np.array([-0.6, 0.4, 0.8, 1.2, 1.6, 2.2, 3.0, 4.0], np.float32)
_NO_MORE = np.float32(3.0e38)


def fit_into(
    halves: np.ndarray,
    words: np.ndarray,
    weights: np.ndarray,
    bits: int,
    group: int,
    dropped: int,
    packed: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray,
) -> int:
    """Fill ``packed``, ``scales``, ``biases``; returns how many places are not finite or too wide.

    Args:
        halves, words: the rows, as :mod:`qexport.codecs.tiles` explains.
        weights: float32 ``(columns,)``, not negative.
        bits, group: of the codes.
        dropped: bits of float32's mantissa that scales lack: 0, 13 (float16), 16 (bfloat16).
        packed: uint8 ``(n, columns * bits / 8)``.
        scales, biases: float32 ``(n, columns / group)``.
    """
    return int(_fit(halves, words, weights, bits, group, dropped, packed, scales, biases))


@compiled
def _stored(value: Lanes, dropped: int) -> Lanes:
    """float32 rounded to the dtype that is stored."""
    if dropped == 16:
        bits = raw_bits(value)
        return float_lanes((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000)
    if dropped == 13:
        return from_half_bits(half_bits(value))
    return value


@compiled
def _whole(value: Lanes) -> Lanes:
    """The nearest whole number of any magnitude."""
    size = absolute(value)
    rounded = select(size < _ROUNDER, (size + _ROUNDER) - _ROUNDER, size)
    return float_lanes(raw_bits(rounded) | raw_bits(value) & _SIGN)


@compiled
def _code(value: Lanes, bias: Lanes, inverse: Lanes, top: int) -> Lanes:
    """The code as float32."""
    return (within((value - bias) * inverse, top) + _ROUNDER) - _ROUNDER


@compiled
def _line(
    tile: np.ndarray,
    weights: np.ndarray,
    bias: Lanes,
    inverse: Lanes,
    top: int,
    sums: np.ndarray,
    line: np.ndarray,
) -> None:
    """Scale and bias of least error for the codes that ``bias`` and ``inverse`` give, into ``line``.

    ``sums`` are those of ``w`` and ``w * x``. Where all codes are one, the result is no number.
    """
    wq, wqq, wqx = splat(0), splat(0), splat(0)
    for i in range(len(tile)):
        value = load(tile, i)
        code = _code(value, bias, inverse, top)
        weighted = code * weights[i]
        wq = wq + weighted
        wqq = wqq + weighted * code
        wqx = wqx + weighted * value
    w, wx = load(sums, 0), load(sums, 1)
    scale = (w * wqx - wq * wx) / (w * wqq - wq * wq)
    store(line, 0, scale)
    store(line, 1, (wx - scale * wq) / w)


@compiled
def _error(
    tile: np.ndarray, weights: np.ndarray, scale: Lanes, bias: Lanes, top: int, inverse: Lanes
) -> Lanes:
    total = splat(0)
    for i in range(len(tile)):
        value = load(tile, i)
        miss = _code(value, bias, inverse, top) * scale + bias - value
        total = total + miss * miss * weights[i]
    return total


@compiled
def _keep(
    tile: np.ndarray,
    weights: np.ndarray,
    scale: Lanes,
    bias: Lanes,
    top: int,
    dropped: int,
    best: np.ndarray,
) -> None:
    """Round a line; it replaces those lanes of ``best`` (error, scale, bias, inverse) that it betters."""
    scale, bias = _stored(scale, dropped), _stored(bias, dropped)
    inverse = 1 / scale
    error = _error(tile, weights, scale, bias, top, inverse)
    better = error < load(best, 0) * _BETTER
    store(best, 0, select(better, error, load(best, 0)))
    store(best, 1, select(better, scale, load(best, 1)))
    store(best, 2, select(better, bias, load(best, 2)))
    store(best, 3, select(better, inverse, load(best, 3)))


class GroupFit(NamedTuple):
    """Scratch of one group, and what is found; the second dimension is ``LANES``."""

    tile: np.ndarray  # the values, float32 (group, LANES)
    codes: np.ndarray  # found: the codes as float32, in the same form
    best: np.ndarray  # found: error, scale, bias, and the inverse scale behind the codes
    sums: np.ndarray
    line: np.ndarray


@compiled
def fit_of(group: int) -> GroupFit:
    """Scratch for groups of that size."""
    return GroupFit(
        scratch(group, LANES), scratch(group, LANES), scratch(4, LANES), scratch(2, LANES), scratch(2, LANES)
    )


@compiled
def fit_group(fit: GroupFit, ours: np.ndarray, top: int, dropped: int) -> int:
    """Fit the values of ``fit.tile``, weighed with ``ours``; returns how often they are no numbers or too
    wide.

    Args:
        top: the highest code.
        dropped: as in :func:`fit_into`.
    """
    tile, codes, best, sums, line = fit.tile, fit.codes, fit.best, fit.sums, fit.line
    bad = 0 if is_finite(tile) else 1
    low, high, w, wx = load(tile, 0), load(tile, 0), splat(0), splat(0)
    for i in range(len(tile)):
        value = load(tile, i)
        low, high = select(value < low, value, low), select(value > high, value, high)
        w, wx = w + ours[i], wx + value * ours[i]
    store(sums, 0, w)
    store(sums, 1, wx)

    # What MLX does: mlx_affine.py, lane by lane.
    step = (high - low) / top
    bad += 0 if all_lanes(step < _NO_MORE) else 1
    step = select(step > _SMALLEST_STEP, step, _SMALLEST_STEP)
    from_low = absolute(low) > absolute(high)
    edge = select(from_low, low, high)
    scale = select(from_low, step, -step)
    steps = _whole(edge / scale)
    scale = select(steps != 0, edge / steps, scale)
    bias = select(steps != 0, edge, 0)
    plain_scale, plain_bias = _stored(scale, dropped), _stored(bias, dropped)
    total = splat(0)
    for i in range(len(tile)):
        value = load(tile, i)
        code = (within((value - bias) / scale, top) + _ROUNDER) - _ROUNDER
        store(codes, i, code)
        miss = code * plain_scale + plain_bias - value
        total = total + miss * miss * ours[i]
    store(best, 0, total)
    store(best, 3, splat(0))

    _keep(tile, ours, plain_scale, plain_bias, top, dropped, best)
    _line(tile, ours, bias, 1 / scale, top, sums, line)
    _keep(tile, ours, load(line, 0), load(line, 1), top, dropped, best)
    for k in range(len(_MORE_STEPS)):
        inverse = (top + _MORE_STEPS[k]) / (high - low)
        start = low + (_MORE_STEPS[k] * np.float32(0.5)) / inverse
        _line(tile, ours, start, inverse, top, sums, line)
        _keep(tile, ours, load(line, 0), load(line, 1), top, dropped, best)
    for _ in range(2):
        _line(tile, ours, load(best, 2), load(best, 3), top, sums, line)
        _keep(tile, ours, load(line, 0), load(line, 1), top, dropped, best)

    inverse = load(best, 3)
    kept = inverse != 0
    store(best, 1, select(kept, load(best, 1), plain_scale))
    store(best, 2, select(kept, load(best, 2), plain_bias))
    for i in range(len(tile)):
        code = _code(load(tile, i), load(best, 2), inverse, top)
        store(codes, i, select(kept, code, load(codes, i)))
    return bad


@compiled
def _fit(
    halves: np.ndarray,
    words: np.ndarray,
    weights: np.ndarray,
    bits: int,
    group: int,
    dropped: int,
    packed: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray,
) -> int:
    top = (1 << bits) - 1
    fit = fit_of(group)
    stream, rest = scratch(48, LANES).view(np.int32), scratch(LANES, 16).view(np.uint8)
    columns = max(halves.shape[1], words.shape[1])
    bad = 0
    for first in range(0, len(packed), LANES):
        for g in range(columns // group):
            read_tile(halves, words, first, g * group, group, fit.tile)
            bad += fit_group(fit, weights[g * group : (g + 1) * group], top, dropped)
            _write_codes(fit.codes, bits, stream)
            write_blocks(stream, rest, packed, first, g * group * bits // 8, group * bits // 8)
            for k in range(min(LANES, len(packed) - first)):
                scales[first + k, g], biases[first + k, g] = fit.best[1, k], fit.best[2, k]
    return bad


@compiled
def _write_codes(codes: np.ndarray, bits: int, stream: np.ndarray) -> None:
    """Codes as one stream of bits a lane: 32 codes fill ``bits`` words."""
    word, held, at = splat_int(0), 0, 0
    for i in range(len(codes)):
        code = to_int(load(codes, i))
        word = word | code << held
        held += bits
        if held >= 32:
            store(stream, at, word)
            at += 1
            held -= 32
            word = code >> (bits - held) if held else splat_int(0)
