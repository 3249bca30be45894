"""An exported folder, and a Hub to push it to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from exported_folders import export, gguf
from push_server import PushHub


@pytest.fixture
def folder(tmp_path):
    """Two verified artifacts."""
    made = tmp_path / "Tuned-GGUF"
    made.mkdir()
    return export(made, [gguf("Q4_K_M"), gguf("Q8_0", 300_000)])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process's client talks to, over plain LFS, with a token, without waiting."""
    from huggingface_hub.utils import _http

    from qexport.publishing import send

    with PushHub() as server:
        server.serve_client(monkeypatch)
        naps = SimpleNamespace(sleep=lambda seconds: time.sleep(0.001))
        monkeypatch.setattr(_http, "time", naps)
        monkeypatch.setattr(send, "time", naps)
        yield server
