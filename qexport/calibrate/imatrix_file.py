"""Importance matrices as llama.cpp writes them: for each weight, how much each input column matters.

The number is the mean of the squared activations that entered a column; a K-quant encoder weighs rounding
errors with it. A stacked expert tensor has one row of numbers per expert. Two forms exist:

* GGUF, ``general.type = imatrix``: tensors ``NAME.in_sum2`` (sums of squares, a row per expert) and
  ``NAME.counts`` (tokens seen, one per expert). The value is sum / count; an expert that saw no token gets
  ones, which means "no preference".
* legacy ``.dat``: per name a call count and sums already scaled by it; the value is sum / calls. All experts
  lie in one row.

Readers: https://github.com/ggml-org/llama.cpp/blob/master/common/imatrix-loader.cpp and ``load_imatrix`` in
tools/quantize/quantize.cpp. Files come from strangers, so every length is checked against the bytes that are
left before anything is allocated, and values must be finite and not negative.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qexport.checkpoint.paths import read_small
from qexport.errors import InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ImportanceMatrix", "read_imatrix"]

# Those of the largest mixtures take three quarters of a gigabyte.
_MAX_BYTES = 1 << 31
_HINT = "make one with llama.cpp's llama-imatrix"


@dataclass(frozen=True)
class ImportanceMatrix:
    """An importance matrix, ready for encoders.

    Attributes:
        sums: by tensor name, sums of squared inputs, float32 ``(matrices, columns)``; legacy files have one
            row for all experts, scaled to calls.
        counts: by tensor name, int64 ``(matrices,)``: tokens seen by each matrix (legacy: calls).
        datasets: what it was collected from, as the file says.
        chunk_count: chunks of text, 0 if the file does not say.
        chunk_size: tokens in a chunk, 0 if the file does not say.
        form: which of the two forms the file had.
        label: the file's name, without its folder.
        sha256: of the file.
        path: the file, where it was read from one: nothing is written over it.
    """

    sums: Mapping[str, np.ndarray] = field(repr=False)
    counts: Mapping[str, np.ndarray] = field(repr=False)
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    form: Literal["gguf", "legacy"]
    label: str
    sha256: str
    path: Path | None = field(default=None, repr=False, compare=False)

    @cached_property
    def entries(self) -> Mapping[str, np.ndarray]:
        """Mean squared inputs by tensor name, float32 ``(matrices, columns)``; ones where nothing was seen.

        A legacy entry without calls holds means already.
        """
        return {name: self._means(name) for name in self.sums}

    def _means(self, name: str) -> np.ndarray:
        import numpy as np

        sums, counts = self.sums[name], self.counts[name][:, None]
        means = sums / np.maximum(counts, 1).astype(np.float32)
        unseen = sums if self.form == "legacy" else np.float32(1)
        return np.where(counts > 0, means, unseen).astype(np.float32)

    def rows_for(self, name: str, matrices: int, columns: int) -> np.ndarray | None:
        """Importance of tensor ``name`` as ``(matrices, columns)``, ``None`` if there is none.

        Raises InputError where the sizes differ: the file belongs to another model.
        """
        found = self.entries.get(name)
        if found is None:
            return None
        if found.size != matrices * columns:
            raise InputError(
                f"{self.label} has {found.size} values for {name}, which needs {matrices * columns}: "
                "it was made for another model",
                hint="Make one for this model, or leave --imatrix out.",
            )
        return found.reshape(matrices, columns)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix in either form. Raises InputError naming the file and what is wrong."""
    import numpy as np

    data = read_small(path, path.name, limit=_MAX_BYTES)
    cursor = _Cursor(path.name, data)
    try:
        read = _read_gguf if data[:4] == b"GGUF" else _read_legacy
        with np.errstate(invalid="ignore"):  # damaged values are reported below, by name
            matrix = read(cursor, hashlib.sha256(data).hexdigest())
    except UnicodeDecodeError:
        raise cursor.bad("a name is not text") from None
    if not matrix.sums:
        raise cursor.bad("it has no entries")
    for name, values in matrix.sums.items():
        if not (np.isfinite(values).all() and values.min() >= 0):
            raise InputError(
                f"{path.name}: {name} has values that are negative or not finite",
                hint="the file is damaged, or the model gave NaN while it was collected; collect it again",
            )
    return replace(matrix, path=path)


class _Cursor:
    """A position in a file's bytes that cannot leave them."""

    def __init__(self, label: str, data: bytes) -> None:
        self.label = label
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def bad(self, what: str) -> InputError:
        return InputError(f"{self.label} is not a usable importance matrix: {what}", hint=_HINT)

    def take(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise self.bad(f"it ends early or is damaged ({size} bytes wanted, {self.left} left)")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> int:
        return int(self.scalar(code))

    def scalar(self, code: str) -> float:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value  # type: ignore[no-any-return]

    def text(self, length_code: str) -> str:
        return self.take(self.number(length_code)).decode()

    def floats(self, count: int) -> np.ndarray:
        import numpy as np

        return np.frombuffer(self.take(4 * count), "<f4")


def _read_legacy(cursor: _Cursor, sha256: str) -> ImportanceMatrix:
    import numpy as np

    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    number_of_entries = cursor.number("i")
    # The smallest entry: a length, one letter, calls, one value and its count.
    if not 0 < number_of_entries <= cursor.left // 17:
        raise cursor.bad(f"neither GGUF nor the older .dat form ({number_of_entries} entries?)")
    for _ in range(number_of_entries):
        name, calls, values = cursor.text("i"), cursor.number("i"), cursor.floats(cursor.number("i"))
        if not name or not values.size:
            raise cursor.bad("an entry without a name or values")
        sums[name] = values.reshape(1, -1).astype(np.float32)
        counts[name] = np.array([max(0, calls)])
    # The rest came later and is optional: number of chunks, name of the data set.
    chunks = cursor.number("i") if cursor.left >= 4 else 0
    dataset = cursor.text("i") if cursor.left > 4 else ""
    datasets = (dataset.rstrip("\0"),) if dataset else ()
    return ImportanceMatrix(sums, counts, datasets, chunks, 0, "legacy", cursor.label, sha256)


# Struct codes of GGUF's scalar types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def _read_gguf(cursor: _Cursor, sha256: str) -> ImportanceMatrix:
    import numpy as np

    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise cursor.bad(f"GGUF version {version}")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    metadata = {cursor.text("Q"): _value(cursor) for _ in range(_plausible(cursor, key_count, 13))}
    infos = [_tensor_info(cursor) for _ in range(_plausible(cursor, tensor_count, 24))]
    tensors = _tensors(cursor, infos, metadata.get("general.alignment", 32))

    names = sorted(name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2"))
    if not names:
        kind = metadata.get("general.type", "model")
        raise cursor.bad(f"a GGUF file of type {kind!r} without .in_sum2 tensors")
    datasets = metadata.get("imatrix.datasets")
    chunks, size = metadata.get("imatrix.chunk_count"), metadata.get("imatrix.chunk_size")
    if not (isinstance(datasets, list) and isinstance(chunks, int) and isinstance(size, int)):
        raise cursor.bad("imatrix.datasets, imatrix.chunk_count or imatrix.chunk_size is missing")
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for name in names:
        found, seen = tensors[f"{name}.in_sum2"], tensors.get(f"{name}.counts")
        if seen is None or not seen.size or not found.size or found.size % seen.size:
            raise cursor.bad(f"{name} has {found.size} sums and {0 if seen is None else seen.size} counts")
        if not ((seen >= 0).all() and (seen < 2**62).all()):
            raise cursor.bad(f"{name} has counts that are negative or not finite")
        whole = np.floor(seen.astype(np.float64) + 0.5).astype(np.int64)  # lround: halves away from zero
        sums[name] = found.reshape(len(whole), -1)
        counts[name] = whole
    texts = tuple(str(text) for text in datasets)
    return ImportanceMatrix(sums, counts, texts, chunks, size, "gguf", cursor.label, sha256)


def _plausible(cursor: _Cursor, count: int, smallest: int) -> int:
    """``count``, if that many things of ``smallest`` bytes can be left."""
    if count > cursor.left // smallest:
        raise cursor.bad(f"it claims {count} items with {cursor.left} bytes left")
    return count


def _value(cursor: _Cursor) -> object:
    kind = cursor.number("I")
    if kind == _STRING:
        return cursor.text("Q")
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind])
    inner, count = (cursor.number("I"), cursor.number("Q")) if kind == _ARRAY else (kind, 0)
    if kind == _ARRAY and inner == _STRING:
        return [cursor.text("Q") for _ in range(_plausible(cursor, count, 8))]
    if kind == _ARRAY and inner in _SCALARS:
        return cursor.take(count * struct.calcsize(f"<{_SCALARS[inner]}"))  # no array of numbers matters here
    raise cursor.bad(f"metadata of unknown type {inner}")


def _tensor_info(cursor: _Cursor) -> tuple[str, int, int, int]:
    """Name, number of values, type, offset."""
    name, dimensions = cursor.text("Q"), cursor.number("I")
    if dimensions > 4:
        raise cursor.bad(f"{name} has {dimensions} dimensions")
    values = 1
    for _ in range(dimensions):
        values *= cursor.number("Q")
    return name, values, cursor.number("I"), cursor.number("Q")


def _tensors(
    cursor: _Cursor, infos: list[tuple[str, int, int, int]], alignment: object
) -> dict[str, np.ndarray]:
    if not isinstance(alignment, int) or alignment <= 0:
        raise cursor.bad(f"alignment {alignment}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, values, kind, offset in infos:
        if not name.endswith((".in_sum2", ".counts")):
            continue
        if kind != 0:
            raise cursor.bad(f"{name} is not float32")
        cursor.at = min(start + offset, len(cursor.data))
        tensors[name] = cursor.floats(values)
    return tensors
