"""Rows of weights that find edges: hypothesis strategies shared by the codec tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

KINDS = ["normal", "heavy", "zero", "constant", "subnormal", "tiny", "huge", "sparse", "ties", "bits"]


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
        case _:  # any finite bits
            bits = rng.integers(0, 1 << 32, (n, columns), dtype=np.uint64).astype(np.uint32)
            rows = bits.view(np.float32)
            rows = np.where(np.isfinite(rows), rows, np.float32(1))
    return np.ascontiguousarray(rows, np.float32)


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
