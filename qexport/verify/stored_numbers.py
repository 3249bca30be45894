"""Every stored number that could be no number: floats, scales of every format, 8-bit floats and their scales.

One NaN among the scales of a Q8_0 makes everything that the model says NaN, or nothing at all where the token
is rare; whether a run meets it is luck. So all of them are looked at, in the bits: in each of these formats a
value is NaN or infinite exactly when its word without the sign is above the largest finite one. A few
megabytes are in memory at a time, and nothing is decoded.

=========  ================================================================================================
GGUF       the scales of each block (``d``, ``dmin``), wherever the type has them; whole floats
folders    float tensors, ``scales`` and ``biases``, global scales, E4M3 codes and scales, E8M0 scales
=========  ================================================================================================

Left out: what overflows only when scales are multiplied; that shows where the model is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.artifacts.rows import Part
from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.tensors import DTYPE_BYTES, matrix_shape
from qexport.container.gguf_file import shard_paths
from qexport.errors import InputError
from qexport.receipt.verification import Check, Finding, Status

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from qexport.artifacts.artifact import Artifact
    from qexport.artifacts.forms import Form
    from qexport.checkpoint.tensors import Checkpoint
    from qexport.container.gguf_file import GgufInfo


_CHUNK = 4 << 20
_NAMED = 20  # faults that a finding lists


@dataclass(frozen=True)
class _Word:
    """A float as bits: its little-endian type, the mask that takes its sign off, the largest finite value."""

    kind: str
    mask: int
    largest: int

    @property
    def size(self) -> int:
        return int(self.kind[-1])


_F16 = _Word("<u2", 0x7FFF, 0x7BFF)
_BF16 = _Word("<u2", 0x7FFF, 0x7F7F)
_F32 = _Word("<u4", 0x7FFFFFFF, 0x7F7FFFFF)
_F64 = _Word("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF)
_E5M2 = _Word("<u1", 0x7F, 0x7B)
_E4M3 = _Word("<u1", 0x7F, 0x7E)
_E8M0 = _Word("<u1", 0xFF, 0xFE)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of ``size`` bytes with ``word`` at each of ``places``."""

    size: int
    word: _Word
    places: tuple[int, ...] = (0,)

    def words(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The words of uint8 ``(blocks, size)``, place by place."""
        import numpy as np

        for place in self.places:
            yield np.ascontiguousarray(rows[:, place : place + self.word.size]).view(self.word.kind)[:, 0]


class _Iq1M(_Blocks):
    """IQ1_M keeps its float16 in the upper four bits of four words."""

    def words(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        import numpy as np

        quarters = np.ascontiguousarray(rows[:, 48:56]).view("<u2")
        yield np.bitwise_or.reduce((quarters & 0xF000) >> np.array([12, 8, 4, 0], "<u2"), axis=1)


def _floats(word: _Word) -> _Blocks:
    return _Blocks(word.size, word)


# Offsets as in https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
_GGUF: Mapping[str, _Blocks] = {
    "F64": _floats(_F64),
    "F32": _floats(_F32),
    "F16": _floats(_F16),
    "BF16": _floats(_BF16),
    "Q4_0": _Blocks(18, _F16),
    "Q4_1": _Blocks(20, _F16, (0, 2)),
    "Q5_0": _Blocks(22, _F16),
    "Q5_1": _Blocks(24, _F16, (0, 2)),
    "Q8_0": _Blocks(34, _F16),
    "Q1_0": _Blocks(18, _F16),
    "Q2_K": _Blocks(84, _F16, (80, 82)),
    "Q3_K": _Blocks(110, _F16, (108,)),
    "Q4_K": _Blocks(144, _F16, (0, 2)),
    "Q5_K": _Blocks(176, _F16, (0, 2)),
    "Q6_K": _Blocks(210, _F16, (208,)),
    "IQ1_S": _Blocks(50, _F16),
    "IQ1_M": _Iq1M(56, _F16),
    "IQ2_XXS": _Blocks(66, _F16),
    "IQ2_XS": _Blocks(74, _F16),
    "IQ2_S": _Blocks(82, _F16),
    "IQ3_XXS": _Blocks(98, _F16),
    "IQ3_S": _Blocks(110, _F16),
    "IQ4_NL": _Blocks(18, _F16),
    "IQ4_XS": _Blocks(136, _F16),
    "TQ1_0": _Blocks(54, _F16, (52,)),
    "TQ2_0": _Blocks(66, _F16, (64,)),
    "MXFP4": _Blocks(17, _E8M0),
    "NVFP4": _Blocks(36, _E4M3, (0, 1, 2, 3)),
}
_SAFETENSORS: Mapping[str, _Blocks] = {
    "F64": _floats(_F64),
    "F32": _floats(_F32),
    "F16": _floats(_F16),
    "BF16": _floats(_BF16),
    "F8_E5M2": _floats(_E5M2),
    "F8_E4M3": _floats(_E4M3),
    "F8_E8M0": _floats(_E8M0),
}
_WHOLE_NUMBERS = frozenset({"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"})


@dataclass
class _Tally:
    """What one tensor was found to hold: blocks seen, how many are bad, the first of these."""

    layout: _Blocks
    blocks: int = 0
    bad: int = 0
    first: int = 0

    def look(self, data: np.ndarray) -> None:
        """Count the bad blocks among these bytes, which are whole blocks."""
        import numpy as np

        rows = data.reshape(-1, self.layout.size)
        word = self.layout.word
        wrong = np.zeros(0, bool)
        for words in self.layout.words(rows):
            bits = words & words.dtype.type(word.mask)
            # The maximum is one vectorized pass, and nearly always the end of it.
            if len(bits) and bits.max() > word.largest:
                above = bits > word.largest
                wrong = wrong | above if len(wrong) else above
        if len(wrong):
            self.first = self.first if self.bad else self.blocks + int(wrong.argmax())
            self.bad += int(wrong.sum())
        self.blocks += len(rows)

    def fault(self, name: str, rows: int) -> str:
        """In words, where it is; ``rows`` are the tensor's."""
        what = "values are" if self.layout.size == self.layout.word.size else "blocks have scales that are"
        row = self.first // max(1, self.blocks // max(1, rows))
        where = f"first block {self.first}, row {row}"
        return f"{name}: {self.bad} of {self.blocks} {what} NaN or infinite ({where})"


def gguf_numbers(path: Path, info: GgufInfo) -> Finding:
    """The numbers of the GGUF at ``path``, any of its shards."""
    import numpy as np

    faults: list[str] = []
    unknown: list[str] = []
    count = 0
    paths = shard_paths(path)
    for name, entry in info.entries.items():
        layout = _GGUF.get(entry.type_name)
        if layout is None:
            if entry.type_name not in _WHOLE_NUMBERS:
                unknown.append(f"{name} ({entry.type_name})")
            continue
        tally = _Tally(layout)
        try:
            for piece in _pieces(paths[entry.shard], entry.start, entry.stop, layout.size):
                tally.look(np.frombuffer(piece, np.uint8))
        except OSError as error:
            words = f"{name} cannot be read: {error.strerror or 'input/output error'}"
            return Finding(Check.NUMBERS, Status.FAIL, words)
        count += tally.blocks
        if tally.bad:
            faults.append(tally.fault(name, matrix_shape(entry.shape)[0]))
    return _judge(faults, unknown, len(info.entries), count)


def _pieces(path: Path, start: int, stop: int, block: int) -> Iterator[bytes]:
    """Bytes ``[start, stop)`` of a file, whole blocks at a time. Raises OSError where it is cut off."""
    step = max(1, _CHUNK // block) * block
    with path.open("rb") as file:
        file.seek(start)
        for at in range(start, stop, step):
            piece = file.read(min(step, stop - at))
            if len(piece) < min(step, stop - at):
                raise OSError(0, "the file has become shorter")
            yield piece


def folder_numbers(artifact: Artifact, stored: Checkpoint) -> Finding:
    """The numbers of a folder, its MTP head included wherever that lies.

    Args:
        artifact: the folder as it was opened.
        stored: the same folder, as tensors.
    """
    faults: list[str] = []
    unknown: list[str] = []
    count = 0
    parts = list(_parts(artifact, stored))
    for part, word, form in parts:
        layout = _layout(part, word, form)
        if layout is None:
            if part.dtype not in _WHOLE_NUMBERS:
                unknown.append(f"{part.name} ({part.dtype})")
            continue
        rows, columns = matrix_shape(part.shape)
        tally = _Tally(layout)
        zeros = 0
        try:
            step = max(1, _CHUNK // max(1, columns * DTYPE_BYTES[part.dtype]))
            for start in range(0, rows, step):
                found = part.rows(start, min(rows, start + step))
                tally.look(_bytes_of(found))
                zeros += int((found == 0).sum()) if word == "weight_global_scale" else 0
        except InputError as error:
            return Finding(Check.NUMBERS, Status.FAIL, error.message)
        count += tally.blocks
        if tally.bad:
            faults.append(tally.fault(part.name, rows))
        if zeros:
            faults.append(f"{part.name} is zero, and the weight is divided by it")
    return _judge(faults, unknown, len(parts), count)


def _parts(artifact: Artifact, stored: Checkpoint) -> Iterator[tuple[Part, str, Form | None]]:
    """Every stored tensor, with what it is to its weight and the weight's form."""
    seen: set[str] = set()
    for weight in artifact.weights.values():
        assert isinstance(weight, StoredWeight)
        try:
            form = weight.form
        except InputError:  # said once, where codes and scales are held against each other
            form = None
        for word, part in weight.parts.items():
            if part.checkpoint.label == stored.label:
                seen.add(part.name)
            yield part, word, form
    # Ranges of the KV cache, buffers: no part of a weight, and read all the same.
    for name, tensor in stored.tensors.items():
        if name not in seen:
            yield Part(stored, tensor), "", None


def _layout(part: Part, word: str, form: Form | None) -> _Blocks | None:
    """How the part's numbers lie in its bytes; ``None`` where they are whole numbers, or not known."""
    if form is not None and part.dtype in ("U8", "U32"):
        if word == "scales":
            return _floats(_E4M3 if form.kind == "nvfp4" else _E8M0)
        if form.kind == "mxfp8" and word == "weight":
            return _floats(_E4M3)
    return _SAFETENSORS.get(part.dtype)


def _bytes_of(rows: torch.Tensor) -> np.ndarray:
    import torch

    found: np.ndarray = rows.contiguous().view(-1).view(torch.uint8).numpy()
    return found


def _judge(faults: list[str], unknown: list[str], tensors: int, count: int) -> Finding:
    data = {"tensors": tensors, "looked_at": count, "faults": faults[:_NAMED], "not_looked_at": unknown}
    if faults:
        more = f" (and {len(faults) - 3} more tensors)" if len(faults) > 3 else ""
        return Finding(Check.NUMBERS, Status.FAIL, "; ".join(faults[:3]) + more, data)
    if unknown:
        words = f"the numbers of {len(unknown)} tensors are in no form that can be looked at: {unknown[0]}"
        return Finding(Check.NUMBERS, Status.SKIPPED, words, data)
    words = f"{count} scales and floats of {tensors} tensors, all finite"
    return Finding(Check.NUMBERS, Status.PASS, words, data)
