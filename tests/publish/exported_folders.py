"""Folders as exports leave them: artifacts of random bytes, with the receipt that knows them."""

from __future__ import annotations

import hashlib
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qexport.errors import InputError
from qexport.receipt.store import parse_receipt
from qexport.receipt.types import Artifact

VERIFIED = {
    "passed": True,
    "verdict": "pass",
    "runtime": {"name": "xllamacpp", "version": "1.2"},
    "acceptance": 0.8636,
    "findings": [{"check": "loads", "status": "pass", "summary": "loaded in 0.0 s"}],
}
FAILED = {
    **VERIFIED,
    "passed": False,
    "verdict": "fail: agreement",
    "findings": [{"check": "agreement", "status": "fail", "summary": "9.0% of 96 tokens agree"}],
}


def entry(label: str, files: dict[str, bytes], **more: Any) -> dict[str, Any]:
    """A receipt's entry of schema 1, as exports made them until 2026-11."""
    listed = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    verification = more.pop("verification", VERIFIED)
    return {
        "kind": "gguf",
        "label": label,
        "files": listed,
        "bits_per_weight": 5.3926,
        "details": {"importance_matrix": None},
        "notes": [],
        "verified": None if verification is None else verification["passed"],
        "verification": verification,
        "source": {"label": "alice/Tuned@0123abcd", "revision": "0123abcd" * 5, "files": {}, "mtp": "own"},
        "options": {},
        "findings": [{"id": "rope.legacy", "severity": "repaired", "what": "rope | without <keys>"}],
        "qexport": "0.1.0",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def export(folder: Path, artifacts: list[tuple[dict[str, Any], dict[str, bytes]]]) -> Path:
    """Write artifacts and their receipt."""
    for _, files in artifacts:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    receipt = {"schema": 1, "artifacts": [made for made, _ in artifacts]}
    (folder / "qexport.json").write_text(json.dumps(receipt))
    return folder


def parsed(value: dict[str, Any]) -> Artifact:
    """The entry as a receipt that is read has it."""
    read = parse_receipt(json.dumps({"schema": 1, "artifacts": [value]}).encode())
    if not read.receipt.artifacts:
        raise InputError("; ".join(read.notes))
    return read.receipt.artifacts[0]


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def gguf(label: str, size: int = 200_000, **more: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """One GGUF artifact; its bytes depend on the label."""
    files = {f"Tuned-{label}.gguf": noise(size, sum(label.encode()))}
    return entry(label, files, **more), files
