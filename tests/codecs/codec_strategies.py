"""Rows of weights that find edges: hypothesis strategies shared by the codec tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

KINDS = [
    *("normal", "heavy", "zero", "constant", "subnormal", "tiny", "huge", "sparse", "ties", "bits"),
    *("negative", "positive", "one-sided", "two values", "mixed", "near"),
]
IMPORTANCE_KINDS = [
    *("none", "squares", "zeros", "tiny", "huge", "one-hot", "few", "blocks of 32", "blocks of 16"),
    *("mostly zero", "heavy", "any scale", "negative", "overflowing"),
]
LONG_TABLES = ("IQ2_S", "IQ2_XS", "IQ1_M", "IQ1_S")
"""Types whose tables ggml builds for 3 to 13 seconds: encoded only where llama-quantize is compared with."""


def make_rows(kind: str, seed: int, n: int, columns: int) -> np.ndarray:
    """Float32 rows of one kind; every value is finite."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((n, columns)).astype(np.float32)
    match kind:
        case "normal":
            rows = normal * np.float32(0.02)
        case "heavy":
            rows = rng.standard_t(2, (n, columns)).astype(np.float32) * np.float32(0.02)
        case "zero":
            rows = np.zeros((n, columns), np.float32) * np.sign(normal)  # both zeros
        case "constant":
            rows = np.full((n, columns), rng.choice([1.0, -0.37, 1e-3, -6e4]), np.float32)
        case "subnormal":
            rows = normal * np.float32(1e-40)
        case "tiny":  # scales around the smallest float16, 2**-24, times 127
            rows = normal * np.float32(2.0 ** rng.integers(-22, -5))
        case "huge":
            rows = normal * np.float32(10.0 ** rng.integers(3, 37))
        case "sparse":
            rows = np.where(rng.random((n, columns)) < 0.02, normal, np.float32(0))
        case "ties":  # multiples of half a step
            rows = (rng.integers(-254, 255, (n, columns)) * 0.5).astype(np.float32)
            rows[:, ::32] = 127
        case "negative":
            rows = -np.abs(normal) - np.float32(rng.choice([0, 1, 100]))
        case "positive":
            rows = np.abs(normal) + np.float32(rng.choice([0, 1, 100]))
        case "one-sided":
            rows = np.where(rng.random((n, columns)) < 0.5, np.float32(0), -np.abs(normal))
        case "two values":
            rows = rng.choice(np.float32([-1, 0.5, 0]), (n, columns))
        case "mixed":  # each 16 values at a scale of their own
            rows = normal * np.exp(rng.normal(0, 10, (n, columns // 16))).repeat(16, 1)
            rows = rows.clip(-1e37, 1e37)
        case "near":  # differences in the last bits only
            rows = np.float32(1) + normal * np.float32(1e-6)
        case _:  # any finite bits
            bits = rng.integers(0, 1 << 32, (n, columns), dtype=np.uint64).astype(np.uint32)
            rows = bits.view(np.float32)
            rows = np.where(np.isfinite(rows), rows, np.float32(1))
    return np.ascontiguousarray(rows, np.float32)


def make_importance(kind: str, seed: int, columns: int) -> np.ndarray | None:
    """Float32 importance of one kind, or None. Zeros let the searches degenerate, signs are no one's idea."""
    rng = np.random.default_rng(seed)
    squares = np.square(rng.standard_normal(columns)).astype(np.float32)
    match kind:
        case "none":
            return None
        case "squares":
            return squares
        case "zeros":
            return np.zeros(columns, np.float32)
        case "tiny":
            return squares * np.float32(rng.choice([1e-38, 1e-20]))
        case "huge":
            return squares * np.float32(1e30)
        case "overflowing":  # float32 cannot hold their sums
            return np.minimum(squares, 1) * np.float32(3e38)
        case "one-hot":
            return (np.arange(columns) == rng.integers(columns)).astype(np.float32)
        case "few":
            return (rng.random(columns) < 1 / 16).astype(np.float32)
        case "blocks of 32" | "blocks of 16":
            size = int(kind[-2:])
            return squares * (rng.random(columns // size) < 0.5).repeat(size).astype(np.float32)
        case "mostly zero":
            return squares * (rng.random(columns) < 0.1).astype(np.float32)
        case "heavy":
            return squares**8
        case "any scale":
            return np.minimum(np.exp(rng.normal(0, 20, columns)), 3e38).astype(np.float32)
        case _:
            return squares * np.sign(rng.standard_normal(columns)).astype(np.float32)


def importance_of(columns: int) -> st.SearchStrategy[np.ndarray | None]:
    return st.builds(
        make_importance, st.sampled_from(IMPORTANCE_KINDS), st.integers(0, 2**32 - 1), st.just(columns)
    )


def rows_of(columns: int, max_rows: int = 4, kinds: list[str] = KINDS) -> st.SearchStrategy[np.ndarray]:
    return st.builds(
        make_rows,
        st.sampled_from(kinds),
        st.integers(0, 2**32 - 1),
        st.integers(1, max_rows),
        st.just(columns),
    )


def golden_rows(n: int = 6, columns: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Rows and importance that no numpy release changes: raw bits of a counter-based generator."""
    words = np.random.Philox(key=11).random_raw(n * columns + columns).astype(np.uint64)
    parts = [((words >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float32) for i in range(4)]
    bell = (parts[0] + parts[1] + parts[2] + parts[3]) / np.float32(65536) - np.float32(2)
    rows = (bell[: n * columns] * np.float32(0.03)).reshape(n, columns)
    rows[:, 100::97] *= np.float32(9)  # outliers
    rows[-1, 256:] = 0
    return rows, np.square(bell[n * columns :]) * np.float32(3)
