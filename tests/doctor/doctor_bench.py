"""What the doctor's tests share: opening, writing a merged plan plainly, a checkpoint without data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.tensors import Checkpoint, StoredTensor
from qexport.codecs.engines import encode_rows
from qexport.doctor import Diagnosis, Repaired, diagnose
from qexport.errors import InputError
from qexport.formats.merged.plan import plan_merged
from qexport.formats.plan import ArtifactPlan


def opened(folder: Path) -> LocalCheckpoint:
    return LocalCheckpoint(folder)


def ids(diagnosis: Diagnosis, *severities: str) -> set[str]:
    """Ids of the findings of these severities (of all, when none is given)."""
    return {f.id for f in diagnosis.findings if not severities or f.severity in severities}


def write(plan: ArtifactPlan, out: Path) -> Path:
    """Read rows, encode, put them where the plan says: an executor without threads, runs or resume."""
    out.mkdir(parents=True)
    blobs = [bytearray(file.header.ljust(file.size, b"\0")) for file in plan.files]
    for tensor in plan.tensors:
        rows = [p.checkpoint.read_rows(p.name, p.start, p.stop) for p in tensor.source.pieces]
        data = b"".join(stream.tobytes() for part in rows for (stream,) in encode_rows(tensor.stored, part))
        assert len(data) == tensor.nbytes
        region = tensor.streams[0][0]
        start = region.offset
        blobs[region.file][start : start + len(data)] = data
    for file, blob in zip(plan.files, blobs, strict=True):
        assert len(blob) == file.size
        (out / file.name).parent.mkdir(exist_ok=True)
        (out / file.name).write_bytes(blob)
    return out


def repair(folder: Path, out: Path, **options: object) -> tuple[Diagnosis, Path]:
    """Diagnose and write the repaired checkpoint."""
    diagnosis = diagnose(LocalCheckpoint(folder), **options)  # type: ignore[arg-type]
    return diagnosis, write(plan_merged(diagnosis.repaired), out)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same bits, shape and dtype."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def data_of(repaired: Repaired, name: str) -> torch.Tensor:
    """A repaired tensor put together."""
    tensor = repaired.tensors[name]
    rows = [p.checkpoint.read_rows(p.name, p.start, p.stop) for p in tensor.pieces]
    return torch.cat(rows).reshape(tensor.shape)


class HeadersOnly:
    """A checkpoint of which nothing but headers and small files is at hand, as on the Hub."""

    folder = None

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner

    @property
    def label(self) -> str:
        return self._inner.label

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self._inner.tensors

    @property
    def files(self) -> Mapping[str, int]:
        return self._inner.files

    def read_file(self, name: str) -> bytes:
        return self._inner.read_file(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        raise InputError(f"the data of {name} is not at hand")
