"""Artifacts and receipts of schema 2, as values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qexport.receipt.measures import Drafting, Drafts, Estimate, Kld, Measures
from qexport.receipt.speeds import Bench, Machine, Range, RuntimeVersion, Speed
from qexport.receipt.types import Artifact, File, Gate, MatrixFile, Source, WeightFile
from qexport.receipt.verification import REQUIRED, Check, Status, Verdict, Verification

BENCH = Bench(
    RuntimeVersion("xllamacpp", "1"),
    Machine("cpu", 2, "Linux"),
    0,
    1,
    8,
    1,
    8,
    (Speed(0, Range(3.0, 2.0, 4.0)),),
)


def found(*checks: Check, status: Status = Status.PASS) -> tuple[Verdict, ...]:
    return tuple(Verdict(check, status, f"{check} it is", {"n": 1.5}) for check in checks)


def report(*more: Verdict, **given: Any) -> Verification:
    return Verification("a.gguf", RuntimeVersion("xllamacpp", "1"), (*found(*REQUIRED), *more), **given)


def drafting(*domains: str, positions: int = 3000) -> Drafting:
    """Of a head, one figure for each of four depths."""
    shares = tuple(Estimate(value, 0.01) for value in (0.6, 0.5, 0.45, 0.4))
    tokens = tuple(Estimate(value, 0.02) for value in (1.6, 1.9, 2.0, 2.1))
    drawn = tuple(Estimate(value, 0.02) for value in (1.7, 2.1, 2.3, 2.4))
    inner = {domain: drafting(positions=positions // len(domains)) for domain in domains}
    return Drafting(positions, shares, tokens, drawn, inner)


PASSED = report(
    *found(Check.AGREEMENT),
    drafts=Drafts(90, 40, 2),
    measures=Measures(
        1020,
        Kld(0.01, 0.002, 0.005),
        Estimate(0.95, 0.01),
        Estimate(1.01, 0.01),
        head=drafting("code", "prose"),
        source_head=drafting("code", "prose"),
        agreement=0.9,
    ),
)


def artifact(
    kind: str = "gguf", label: str = "Q8_0", *names: str, sha256: str = "a" * 64, **more: Any
) -> Artifact:
    files = tuple(File(name, 3, sha256) for name in names or ("a.gguf",))
    return Artifact(kind, label, files, **more)


FULL = artifact(
    bits_per_weight=8.5,
    details={"tensor_types": {"Q8_0": 3}},
    notes=("a note",),
    verification=PASSED,
    bench=BENCH,
    gates=(Gate("a.gguf", "max_mean_kld", 0.02, 0.01, True),),
    source=Source("org/M@0123abcd", "0" * 40, {"m.safetensors": WeightFile(3, 9, "b" * 64)}, "own"),
    options={"types": ["Q8_0"]},
    matrix=MatrixFile("m.gguf", "c" * 64, ("calib",), 512),
    model_name="M",
    fingerprint="f" * 64,
    tool="0.1.0",
    libraries={"torch": "2"},
    written="2026-11-20T10:00:00+00:00",
)


def fill(folder: Path, *artifacts: Artifact) -> Path:
    """The files of these artifacts, three bytes each."""
    for made in artifacts:
        for file in made.files:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.name).write_bytes(b"abc")
    return folder
