"""Folders as exports leave them, and a Hub to push them to."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from push_server import TOKEN, PushHub

VERIFIED = {
    "passed": True,
    "verdict": "pass",
    "runtime": {"name": "xllamacpp", "version": "1.2"},
    "acceptance": 0.8636,
    "findings": [{"check": "loads", "status": "pass", "summary": "loaded in 0.0 s"}],
}
FAILED = {**VERIFIED, "passed": False, "verdict": "fail: agreement"}


def entry(label: str, files: dict[str, bytes], **more: Any) -> dict[str, Any]:
    """A receipt's entry, as ``qexport.export.receipt.artifact_entry`` makes them."""
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


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def gguf(label: str, size: int = 200_000, **more: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """One GGUF artifact; its bytes depend on the label."""
    files = {f"Tuned-MTP-{label}.gguf": noise(size, sum(label.encode()))}
    return entry(label, files, **more), files


@pytest.fixture
def folder(tmp_path):
    """Two verified artifacts."""
    made = tmp_path / "Tuned-GGUF"
    made.mkdir()
    return export(made, [gguf("Q4_K_M"), gguf("Q8_0", 300_000)])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process's client talks to, over plain LFS, with a token, without waiting."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    import qexport.publish.send as send

    with PushHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        naps = SimpleNamespace(sleep=lambda seconds: time.sleep(0.001))
        monkeypatch.setattr(_http, "time", naps)
        monkeypatch.setattr(send, "time", naps)
        yield server
