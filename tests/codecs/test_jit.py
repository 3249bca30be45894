"""Kernels compile with a cache where there is a place for one, and without elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qexport.codecs import jit


def _through_bits(value: np.float32) -> np.float32:
    return jit.float_of(jit.bits_of(value) + np.uint32(1))


def test_reinterpreting_is_exact() -> None:
    next_one = jit.compiled(_through_bits)
    for value in (0.0, 1.0, -1.0, 65504.0, 1e-40):
        bits = np.float32(value).view(np.uint32) + np.uint32(1)
        assert np.float32(next_one(np.float32(value))).view(np.uint32) == bits


def test_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = jit.njit, []

    def njit(**options: Any) -> Callable[..., Any]:
        seen.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(jit, "njit", njit)
    assert jit.compiled(lambda value: value + 1)(2) == 3
    assert seen == [True, False]
