"""Importance matrices as llama.cpp writes them: for each weight, how much each input column matters.

The number is the mean of the squared activations that entered a column; a K-quant encoder weighs rounding
errors with it. A stacked expert tensor has one row of numbers per expert. Two forms exist:

* GGUF, ``general.type = imatrix``: tensors ``NAME.in_sum2`` (sums of squares, a row per expert) and
  ``NAME.counts`` (tokens seen, one per expert). The value is sum / count; an expert that saw no token gets
  ones, which means "no preference". Newer files (b11434) have ``NAME.in_sum`` (sums of the inputs themselves)
  as well, and what describes both (:mod:`qexport.evidence.imatrix_stats`).
  Beside them may lie sensitivities (``evidence.sensitivity``), under suffixes that llama.cpp reads past, and
  ``qexport.sensitivity.*`` that say what they were summed over.
* legacy ``.dat``: per name a call count and sums already scaled by it; the value is sum / calls. All experts
  lie in one row.

Readers: https://github.com/ggml-org/llama.cpp/blob/master/common/imatrix-loader.cpp and ``load_imatrix`` in
tools/quantize/quantize.cpp. Files come from strangers, so every length is checked against the bytes that are
left before anything is allocated, and values must be finite and not negative.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qexport.checkpoint.paths import read_small
from qexport.container.gguf_read import DamagedGguf, GgufHeader, read_gguf_header
from qexport.container.gguf_write import (
    KV,
    MAGIC,
    TensorInfo,
    ValueType,
    array,
    header_bytes,
    padded,
    string,
    u32,
)
from qexport.errors import InputError
from qexport.evidence.sensitivity import Sensitivity, Summed

if TYPE_CHECKING:
    import numpy as np


_SENSITIVITY = "qexport.sensitivity."
_F32 = 0  # ggml's number of the type

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
        file_sha256: of the file that it was read from, empty where it was made here.
        totals: by tensor name, sums of the inputs themselves, shaped like ``sums``, where they were kept.
        nextn_layers: how many of the uppermost blocks are an MTP head's, as the file says.
        sensitivity: sums of gradients, where they were collected, too; only in the GGUF form.
        path: the file, where it was read from one: nothing is written over it.
        to_come: names and sizes only, for planning: the numbers stand for those of a pass that has not run.
    """

    sums: Mapping[str, np.ndarray] = field(repr=False)
    counts: Mapping[str, np.ndarray] = field(repr=False)
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    form: Literal["gguf", "legacy"]
    label: str
    file_sha256: str = ""
    totals: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    nextn_layers: int = 0
    sensitivity: Sensitivity | None = None
    path: Path | None = field(default=None, repr=False, compare=False)
    to_come: bool = False

    @cached_property
    def sha256(self) -> str:
        """Of the file that it was read from, or that :func:`imatrix_bytes` makes of it."""
        return self.file_sha256 or hashlib.sha256(imatrix_bytes(self)).hexdigest()

    @cached_property
    def described(self) -> Mapping[str, np.ndarray]:
        """What the newest files say of each tensor: float32 ``(12,)``."""
        from qexport.evidence.imatrix_stats import described

        return described(self)

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

    def rows_for(self, name: str, matrices: int, columns: int) -> np.ndarray:
        """Importance of tensor ``name``, which is among the entries, as ``(matrices, columns)``.

        Raises InputError where the sizes differ: the file belongs to another model.
        """
        found = self.entries[name]
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
        read = _read_gguf if data[:4] == MAGIC else _read_legacy
        with np.errstate(invalid="ignore"):  # damaged values are reported below, by name
            matrix = read(cursor, hashlib.sha256(data).hexdigest())
    except UnicodeDecodeError:
        raise cursor.bad("a name is not text") from None
    if not matrix.sums:
        raise cursor.bad("it has no entries")
    tables = matrix.sensitivity.tables if matrix.sensitivity is not None else {}
    beside = ((f"{name}.{table}", values) for table in tables for name, values in tables[table].items())
    for name, values in (*matrix.sums.items(), *beside):
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

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def text(self) -> str:
        return self.take(self.number()).decode()

    def floats(self, count: int) -> np.ndarray:
        import numpy as np

        return np.frombuffer(self.take(4 * count), "<f4")


def _read_legacy(cursor: _Cursor, sha256: str) -> ImportanceMatrix:
    import numpy as np

    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    number_of_entries = cursor.number()
    # The smallest entry: a length, one letter, calls, one value and its count.
    if not 0 < number_of_entries <= cursor.left // 17:
        raise cursor.bad(f"neither GGUF nor the older .dat form ({number_of_entries} entries?)")
    for _ in range(number_of_entries):
        name, calls, values = cursor.text(), cursor.number(), cursor.floats(cursor.number())
        if not name or not values.size:
            raise cursor.bad("an entry without a name or values")
        sums[name] = values.reshape(1, -1).astype(np.float32)
        counts[name] = np.array([max(0, calls)])
    # The rest came later and is optional: number of chunks, name of the data set.
    chunks = cursor.number() if cursor.left >= 4 else 0
    dataset = cursor.text() if cursor.left > 4 else ""
    datasets = (dataset.rstrip("\0"),) if dataset else ()
    return ImportanceMatrix(sums, counts, datasets, chunks, 0, "legacy", cursor.label, sha256)


def _read_gguf(cursor: _Cursor, sha256: str) -> ImportanceMatrix:
    import numpy as np

    try:
        header = read_gguf_header(
            BytesIO(cursor.data), len(cursor.data), lists=("imatrix.datasets", f"{_SENSITIVITY}texts")
        )
    except DamagedGguf as error:
        raise cursor.bad(str(error)) from None
    names = sorted(name.removesuffix(".in_sum2") for name in header.tensors if name.endswith(".in_sum2"))
    metadata = header.metadata
    if not names:
        kind = metadata.get("general.type", "model")
        raise cursor.bad(f"a GGUF file of type {kind!r} without .in_sum2 tensors")
    datasets = header.texts.get("imatrix.datasets")
    chunks, size = metadata.get("imatrix.chunk_count"), metadata.get("imatrix.chunk_size")
    if not (datasets is not None and isinstance(chunks, int) and isinstance(size, int)):
        raise cursor.bad("imatrix.datasets, imatrix.chunk_count or imatrix.chunk_size is missing")
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    totals: dict[str, np.ndarray] = {}
    for name in names:
        found, seen = (_floats(cursor, header, f"{name}.{suffix}") for suffix in ("in_sum2", "counts"))
        if not seen.size or not found.size or found.size % seen.size:
            raise cursor.bad(f"{name} has {found.size} sums and {seen.size} counts")
        if not ((seen >= 0).all() and (seen < 2**62).all()):
            raise cursor.bad(f"{name} has counts that are negative or not finite")
        whole = np.floor(seen.astype(np.float64) + 0.5).astype(np.int64)  # lround: halves away from zero
        sums[name] = found.reshape(len(whole), -1)
        counts[name] = whole
        if f"{name}.in_sum" in header.tensors:
            inputs = _floats(cursor, header, f"{name}.in_sum")
            if inputs.size != found.size or not np.isfinite(inputs).all():
                raise cursor.bad(
                    f"{name}.in_sum has {inputs.size} values beside {found.size} sums of squares"
                )
            totals[name] = inputs.reshape(len(whole), -1)
    nextn = metadata.get("imatrix.n_layer_nextn", 0)
    sensitivity = _read_sensitivity(cursor, header)
    return ImportanceMatrix(
        sums,
        counts,
        datasets,
        chunks,
        size,
        "gguf",
        cursor.label,
        sha256,
        totals,
        nextn if isinstance(nextn, int) else 0,
        sensitivity,
    )


def _read_sensitivity(cursor: _Cursor, header: GgufHeader) -> Sensitivity | None:
    texts = header.texts.get(f"{_SENSITIVITY}texts")
    if texts is None:
        return None
    tokens, drafted = (header.metadata.get(_SENSITIVITY + key) for key in ("tokens", "draft_tokens"))
    if not (isinstance(tokens, int) and isinstance(drafted, int) and tokens > 0):
        raise cursor.bad(f"{_SENSITIVITY}tokens or {_SENSITIVITY}draft_tokens is missing")
    tables: dict[Summed, dict[str, np.ndarray]] = {}
    for full, tensor in header.tensors.items():
        name, _, suffix = full.rpartition(".")
        if suffix in list(Summed):
            matrices = tensor.shape[0] if len(tensor.shape) > 1 else 1
            found = _floats(cursor, header, full)
            if not found.size:
                raise cursor.bad(f"{full} is empty")
            tables.setdefault(Summed(suffix), {})[name] = found.reshape(matrices, -1)
    return Sensitivity(tables, tokens, drafted, texts)


def _floats(cursor: _Cursor, header: GgufHeader, name: str) -> np.ndarray:
    """The values of a tensor, none where it is not there."""
    tensor = header.tensors.get(name)
    if tensor is not None and tensor.type_name != "F32":
        raise cursor.bad(f"{name} is not float32")
    cursor.at = 0 if tensor is None else tensor.start
    return cursor.floats(0 if tensor is None else math.prod(tensor.shape))


def imatrix_bytes(matrix: ImportanceMatrix, *, described: bool = True) -> bytes:
    """The whole file, as llama-imatrix would write it (``save_imatrix`` in
    https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp): sums and counts in float32,
    names sorted by their bytes, means left to the reader.

    Args:
        described: with its statistics of each tensor, as from b11434 on.
    """
    import numpy as np

    header, tensors = _laid_out(matrix, described)
    data = [header]
    for values in tensors.values():
        raw = np.ascontiguousarray(values, "<f4").tobytes()
        data += [raw, bytes(padded(len(raw)) - len(raw))]
    return b"".join(data)


def imatrix_size(matrix: ImportanceMatrix) -> int:
    """Bytes of :func:`imatrix_bytes`, without a number of the matrix being looked at."""
    header, tensors = _laid_out(matrix, described=True)
    return len(header) + sum(padded(4 * values.size) for values in tensors.values())


def _laid_out(matrix: ImportanceMatrix, described: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """The header of its file, and the values behind it in their order."""
    import numpy as np

    from qexport.evidence.imatrix_stats import SCHEMA

    metadata: dict[str, KV] = {"general.type": string("imatrix")}
    if matrix.datasets:
        metadata["imatrix.datasets"] = array(ValueType.STRING, matrix.datasets)
    metadata["imatrix.chunk_count"] = u32(matrix.chunk_count)
    metadata["imatrix.chunk_size"] = u32(matrix.chunk_size)
    if matrix.nextn_layers:
        metadata["imatrix.n_layer_nextn"] = u32(matrix.nextn_layers)
    if described:
        metadata["imatrix.stats_schema"] = array(ValueType.STRING, SCHEMA)
    unknown = np.zeros(len(SCHEMA), np.float32)
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(matrix.sums, key=str.encode):
        tensors[f"{name}.in_sum2"] = matrix.sums[name]
        tensors[f"{name}.counts"] = matrix.counts[name][:, None]
        if name in matrix.totals:
            tensors[f"{name}.in_sum"] = matrix.totals[name]
        if described:
            tensors[f"{name}.stats"] = (unknown if matrix.to_come else matrix.described[name])[None]
    if (beside := matrix.sensitivity) is not None:
        metadata[f"{_SENSITIVITY}tokens"] = u32(beside.tokens)
        metadata[f"{_SENSITIVITY}draft_tokens"] = u32(beside.draft_tokens)
        metadata[f"{_SENSITIVITY}texts"] = array(ValueType.STRING, beside.texts)
        for table in Summed:
            rows = beside.tables.get(table, {})
            tensors |= {f"{name}.{table}": rows[name] for name in sorted(rows, key=str.encode)}
    infos: list[TensorInfo] = []
    at = 0
    for name, values in tensors.items():
        shape = values.shape if len(values) > 1 else values.shape[1:]  # ggml leaves outer ones out
        infos.append(TensorInfo(name, shape, _F32, at))
        at = padded(at + 4 * values.size)
    return header_bytes(metadata, infos), tensors
