"""Lanes do in a kernel what numpy does outside, to the bit, with NaN, infinity and both zeros."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import pytest
from numba import njit

from qexport.codecs.lane_numbers import code, from_half_bits, half_bits, nearest, rounded, within
from qexport.codecs.lanes import (
    LANES,
    SQUARE,
    absolute,
    all_lanes,
    any_lane,
    float_lanes,
    int_lanes,
    load,
    raw_bits,
    read_square,
    root,
    select,
    splat,
    splat_int,
    store,
    to_float,
    to_int,
    write_square,
)

EDGES = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 3e38, 1e-45, -7e-46, 65504.0, 2.5, -2.5, 12.0]


def numbers(seed: int, rows: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, LANES)).astype(np.float32)
    values[:, : len(EDGES)] = [rng.permutation(np.float32(EDGES)) for _ in range(rows)]
    return values


def run(function: Callable[..., Any], values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """``function`` of the first two rows, as a kernel."""
    kernel = (
        njit(lambda a, b: function(a, b)) if isinstance(function, BuiltinFunctionType) else njit(function)
    )

    @njit
    def apply(values: np.ndarray, out: np.ndarray) -> None:
        store(out, 0, kernel(load(values, 0), load(values, 1)))

    apply(values, out)
    return out[0]


def bits(values: np.ndarray) -> list[int]:
    """Bits, but every NaN alike."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32).tolist()


@pytest.mark.parametrize("symbol", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic(symbol: Callable[..., Any]) -> None:
    for seed in range(3):
        values = numbers(seed)
        with np.errstate(all="ignore"):
            expected = symbol(values[0], values[1])
        assert bits(run(symbol, values, np.zeros((1, LANES), np.float32))) == bits(expected)


@pytest.mark.parametrize(
    "symbol", [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
)
def test_comparisons(symbol: Callable[..., Any]) -> None:
    for seed in range(3):
        values = numbers(seed)
        found = run(lambda a, b: int_lanes(symbol(a, b)), values, np.zeros((1, LANES), np.int32))
        assert found.tolist() == symbol(values[0], values[1]).astype(int).tolist()


@pytest.mark.parametrize(
    "symbol", [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
)
def test_whole_numbers(symbol: Callable[..., Any]) -> None:
    values = np.random.default_rng(1).integers(-(2**31), 2**31, (2, LANES)).astype(np.int32)
    with np.errstate(over="ignore"):
        expected = symbol(values[0], values[1])
    assert run(symbol, values, np.zeros((1, LANES), np.int32)).tolist() == expected.tolist()


def test_a_product_is_not_fused_with_a_sum() -> None:
    values = np.random.default_rng(2).standard_normal((2, LANES)).astype(np.float32)
    found = run(lambda a, b: a * b + a, values, np.zeros((1, LANES), np.float32))
    assert bits(found) == bits(values[0] * values[1] + values[0])


def test_numbers_beside_lanes_are_float32() -> None:
    values = np.abs(numbers(4))
    found = run(lambda a, b: (a * 0.1 - 1) / 3, values, np.zeros((1, LANES), np.float32))
    with np.errstate(all="ignore"):
        expected = (values[0] * np.float32(0.1) - np.float32(1)) / np.float32(3)
    assert bits(found) == bits(expected)


def test_functions() -> None:
    @njit
    def apply(values: np.ndarray, floats: np.ndarray, ints: np.ndarray) -> tuple[bool, bool, bool]:
        a, b = load(values, 0), load(values, 1)
        store(floats, 0, root(absolute(a)))
        store(floats, 1, select((a < b) & (b > 0) | (a == 1), a, -b))
        store(floats, 2, float_lanes(raw_bits(a) ^ 1))
        store(floats, 3, to_float(raw_bits(a) >> 20) + splat(0.25))
        store(ints, 0, to_int(select((a < 9) & (a > -9), a, 0)))
        store(ints, 1, (raw_bits(a) >> 3) + (raw_bits(b) << 2) - splat_int(7))
        return any_lane(a == 65504), any_lane(a == 65505), all_lanes((a == a) | (a != a))

    values = numbers(3)
    floats, ints = np.zeros((4, LANES), np.float32), np.zeros((2, LANES), np.int32)
    assert apply(values, floats, ints) == (True, False, True)
    (a, b), (left, right) = values, values.view(np.uint32)
    with np.errstate(all="ignore"):
        assert bits(floats[0]) == bits(np.sqrt(np.abs(a)))
        assert bits(floats[1]) == bits(np.where((a < b) & (b > 0) | (a == 1), a, -b))
        assert bits(floats[2]) == bits((left ^ np.uint32(1)).view(np.float32))
        assert bits(floats[3]) == bits((left >> 20).astype(np.float32) + np.float32(0.25))
        assert ints[0].tolist() == np.where(np.abs(a) < 9, a, 0).astype(np.int32).tolist()
        expected = (left >> np.uint32(3)) + (right << np.uint32(2)) - np.uint32(7)
        assert ints[1].view(np.uint32).tolist() == expected.tolist()


def test_rounding() -> None:
    values = np.random.default_rng(5).uniform(-40, 40, (2, LANES)).astype(np.float32)
    values[0, :8] = [0.5, 1.5, 2.5, -0.5, 14.5, 15.5, 3e9, np.nan]
    ints, floats = np.zeros((1, LANES), np.int32), np.zeros((1, LANES), np.float32)
    whole = np.rint(values[0, :6]).astype(int).tolist()
    assert run(lambda a, b: nearest(a), values, ints)[:6].tolist() == whole == [0, 2, 2, 0, 14, 16]
    assert run(lambda a, b: code(a, 15), values, ints)[:6].tolist() == [0, 2, 2, 0, 14, 15]
    limited = run(lambda a, b: rounded(within(a, 15)), values, floats)
    with np.errstate(invalid="ignore"):
        expected = np.rint(np.nan_to_num(values[0], nan=0).clip(0, 15))
    assert limited.tolist() == expected.tolist()
    # as nearest_int does it: beyond 2**22 the low bits of the sum
    wrapped = (np.float32([3e9, np.nan]) + np.float32(12582912)).view(np.int32) & 0x7FFFFF
    found = run(lambda a, b: nearest(a), values, ints)[6:8]
    assert found.tolist() == (wrapped - 0x400000).tolist()


def test_float16() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    candidates = np.concatenate([halves, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9)])
    candidates = np.concatenate([candidates, [65519.99, 65520, 1e30, np.inf]]).astype(np.float32)
    candidates = np.concatenate([candidates, -candidates])
    candidates = np.resize(candidates, (-(-len(candidates) // LANES), LANES))

    @njit
    def apply(values: np.ndarray, out: np.ndarray, back: np.ndarray) -> None:
        for i in range(len(values)):
            store(out, i, half_bits(load(values, i)))
            store(back, i, from_half_bits(load(out, i)))

    out, back = np.zeros(candidates.shape, np.int32), np.zeros(candidates.shape, np.float32)
    apply(candidates, out, back)
    with np.errstate(over="ignore"):
        expected = candidates.astype(np.float16)
    assert np.array_equal(out, expected.view(np.uint16))
    finite = np.isfinite(expected)
    assert np.array_equal(back[finite].view(np.uint32), expected[finite].astype(np.float32).view(np.uint32))


def test_squares() -> None:
    @njit
    def there(source: np.ndarray, row: int, column: int, tile: np.ndarray) -> None:
        read_square(source, row, column, len(source) - 1, tile, 3, 16)

    @njit
    def back(words: np.ndarray, out: np.ndarray, row: int, offset: int) -> None:
        write_square(words, 3, 16, out, row, offset, len(out) - 1)

    rng = np.random.default_rng(6)
    for dtype, shift in ((np.uint16, 16), (np.uint32, 0)):
        source = rng.integers(0, 2**15, (20, 40)).astype(dtype)
        for row in (0, 4, 11):
            tile = np.zeros((20, LANES), np.float32)
            there(source, row, 5, tile)
            rows = np.minimum(np.arange(row, row + SQUARE), 19)
            expected = source[rows, 5 : 5 + SQUARE].astype(np.uint32) << np.uint32(shift)
            assert np.array_equal(tile[3:19, 16:].view(np.uint32), expected.T)
            assert not tile[:3].any()
            assert not tile[:, :16].any()

            out = np.zeros((20, 71), np.uint8)
            back(tile.view(np.int32), out, row, 7)
            count = min(SQUARE, 20 - row)
            assert out[row : row + count, 7:].tobytes() == expected[:count].tobytes()
            assert not out[:row].any()
            assert not out[:, :7].any()
