"""Receipts written by hand: what an export, a measurement and a bench leave, without any of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

PASSED = {
    "passed": True,
    "verdict": "pass",
    "runtime": {"name": "xllamacpp", "version": "1.2"},
    "acceptance": 0.8636,
    "findings": [],
}
FAILED = {
    **PASSED,
    "passed": False,
    "verdict": "fail: agreement",
    "findings": [{"check": "agreement", "status": "fail", "summary": "9.0% of 96 tokens agree"}],
}
UNRUN = {"passed": False, "verdict": "not verified", "runtime": {"name": "none", "version": ""}}
MATRIX = {
    "file": "tuned-imatrix.gguf_file",
    "sha256": "ab" * 32,
    "datasets": ["qexport-calib-1 131072 tokens"],
    "calibration": {"corpus": "qexport-calib-1", "tokens": 131072, "chunk": 512, "seed": 0, "seconds": 61.5},
}


def measures(mean: float, p99_9: float, acceptance: float | None = 0.52, **more: Any) -> dict[str, Any]:
    """As schema 1 has them."""
    found: dict[str, Any] = {
        "kld": {
            "mean": mean,
            "median": mean / 4,
            "p90": mean * 2,
            "p95": mean * 4,
            "p99": mean * 10,
            "p99_9": p99_9,
            "max": p99_9 * 2,
        },
        "same_top1": 1 - mean,
        "positions": 4080,
        "perplexity_ratio": 1 + mean / 2,
        "tok_s": 41.5,
    }
    if acceptance is not None:
        found |= {"acceptance": acceptance, "source_acceptance": 0.525}
    return {**found, **more}


def bench(bare: float, gains: tuple[float, ...] = (1.25, 1.45, 1.4, 1.2), cpu: str = "Ryzen 7950X") -> dict:
    """As ``qexport.receipt.speeds.Bench.to_json`` gives it."""

    def speed(n_max: int, value: float) -> dict[str, Any]:
        return {
            "n_max": n_max,
            "tok_s": {"median": value, "low": 0.95 * value, "high": 1.04 * value},
            "prompt_tok_s": {"median": 20 * bare, "low": 19 * bare, "high": 21 * bare},
            "drafted": 100 * n_max,
            "accepted": (88 - 9 * n_max) * n_max,
        }

    return {
        "runtime": {"name": "xllamacpp", "version": "1.2"},
        "machine": {"cpu": cpu, "processors": 32, "system": "Linux x86_64", "gpu": ""},
        "threads": 16,
        "prompts": 4,
        "n_predict": 128,
        "repeats": 3,
        "prompt_tokens": 512,
        "speeds": [speed(0, bare), *(speed(at + 1, bare * gain) for at, gain in enumerate(gains))],
        "notes": [],
    }


def entry(kind: str, label: str, sizes: dict[str, int], **more: Any) -> dict[str, Any]:
    """An artifact of a receipt; files are named with their sizes."""
    files = [
        {"name": name, "bytes": size, "sha256": hashlib.sha256(f"{name}{size}".encode()).hexdigest()}
        for name, size in sizes.items()
    ]
    verification = more.pop("verification", PASSED)
    return {
        "kind": kind,
        "label": label,
        "files": files,
        "bits_per_weight": 4.9,
        "details": {},
        "notes": [],
        "verified": None if verification is None else verification["passed"],
        "verification": verification,
        "measures": None,
        "source": {
            "label": "alice/Tuned@0123abcd",
            "revision": "0123abcd" * 5,
            "files": {"model.safetensors": {"bytes": 54_000_000_000}},
            "mtp": "grafted from org/Base",
        },
        "options": {"types": [label], "imatrix": MATRIX, "file_name": "x"},
        "findings": [
            {"id": "rope.legacy", "severity": "repaired", "what": "rope parameters in the old form"}
        ],
        "qexport": "0.1.0",
        "written": "2026-11-20T10:00:00+00:00",
        **more,
    }


def gguf(label: str, size: int, **more: Any) -> dict[str, Any]:
    return entry("gguf", label, {f"Tuned-{label}.gguf": size}, **more)


def receipt(folder: Path, *entries: dict[str, Any]) -> Path:
    """The folder with a receipt of these; missing files are made, with their sizes and nothing in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (file for made in entries for file in made["files"]):
        (folder / file["name"]).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / file["name"]).exists():
            with (folder / file["name"]).open("wb") as sparse:
                sparse.truncate(file["bytes"])
    (folder / "qexport.json").write_text(json.dumps({"schema": 1, "artifacts": list(entries)}))
    return folder


def of_base(made: dict[str, Any]) -> dict[str, Any]:
    """The same artifact of the base model."""
    source = {**made["source"], "label": "org/Base@99887766", "revision": "99887766" * 5, "mtp": "own"}
    return {**made, "source": source, "findings": []}


LADDER = (
    ("Q8_0", 28_600_000_000, 8.5, 0.00102, 0.05, 0.525, 21.0),
    ("Q6_K", 22_080_000_000, 6.6, 0.0022, 0.11, 0.524, 26.5),
    ("Q5_K_M", 19_230_000_000, 5.7, 0.0068, 0.28, 0.521, 31.0),
    ("Q4_K_M", 16_550_000_000, 4.9, 0.0169, 0.61, 0.518, 37.0),
    ("IQ4_XS", 14_950_000_000, 4.4, 0.0181, 0.7, 0.515, 36.0),
    ("Q3_K_M", 13_290_000_000, 3.9, 0.041, 1.6, 0.51, 38.0),
    ("Q2_K", 10_500_000_000, 3.1, 0.138, 4.2, 0.497, 40.0),
)


def large_ladder(folder: Path) -> list[Path]:
    """What a 27B looks like: seven GGUF types, MLX with its drafter, FP8, NVFP4 that failed."""
    ladder = [
        gguf(label, size, bits_per_weight=bits, measures=measures(mean, tail, share, bench=bench(speed)))
        for label, size, bits, mean, tail, share, speed in LADDER
    ]
    mlx = entry("mlx", "6bit", {"model.safetensors": 21_900_000_000}, measures=measures(0.0031, 0.15, 0.523))
    head = entry("mlx-drafter", "6bit-MTP", {"model.safetensors": 849_000_000}, measures=mlx["measures"])
    fp8 = entry("fp8", "FP8", {"model.safetensors": 29_100_000_000}, measures=measures(0.0052, 0.2, 0.524))
    nvfp4 = entry("nvfp4", "NVFP4", {"m.safetensors": 17_900_000_000}, measures=measures(0.031, 1.1, 0.505))
    nvfp4["verification"] = FAILED
    return [
        receipt(folder / "Tuned-GGUF", *ladder),
        receipt(folder / "Tuned-MLX-6bit", mlx),
        receipt(folder / "Tuned-MLX-6bit-MTP", head),
        receipt(folder / "Tuned-FP8", fp8),
        receipt(folder / "Tuned-NVFP4", nvfp4),
    ]
