"""Kernels compile with a cache where there is a place for one, and without elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config

from qexport.codecs import jit


def _through_bits(value: np.float32) -> np.float32:
    return jit.float_of(jit.bits_of(value) + np.uint32(1))


def test_reinterpreting_is_exact() -> None:
    next_one = jit.compiled(_through_bits)
    for value in (0.0, 1.0, -1.0, 65504.0, 1e-40):
        bits = np.float32(value).view(np.uint32) + np.uint32(1)
        assert np.float32(next_one(np.float32(value))).view(np.uint32) == bits


def test_a_cached_kernel_goes_with_all_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel is loaded from the cache, unless a file of the package has changed since."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    compiled = []
    for digest in ("before", "before", "after", "after"):
        monkeypatch.setattr(jit, "_sources_digest", lambda digest=digest: digest)
        count = jit.compilations()
        jit.compiled(_through_bits)(np.float32(1))
        compiled.append(jit.compilations() - count)
    assert compiled == [1, 0, 1, 0]


def test_a_cache_of_other_sources_is_not_even_unpickled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may name what is no longer there; planted: an index whose rest is no pickle at all."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_sources_digest", lambda: "before")
    jit.compiled(_through_bits)(np.float32(1))
    (index,) = tmp_path.rglob("*.nbi")
    with index.open("rb") as file:
        pickle.load(file)
        version = file.tell()
    index.write_bytes(index.read_bytes()[:version] + b"cqexport.codecs.super_blocks\nGone\n.")
    monkeypatch.setattr(jit, "_sources_digest", lambda: "after")
    count = jit.compilations()
    assert jit.compiled(_through_bits)(np.float32(1)) > 1
    assert jit.compilations() == count + 1


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
