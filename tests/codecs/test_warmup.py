"""Kernels made ready: what had to be compiled is told, once, and later processes find it in the cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qexport.codecs.warmup import Prepared, prepare

CODE = """
import json, torch
from qexport.codecs.warmup import prepare
told = []
types = ["Q4_1", "Q8_0"]
prepare(types, [torch.bfloat16], announce=lambda one: told.append([one.type_name, one.compiled]))
again = prepare(types, [torch.bfloat16])
print(json.dumps([told, [one.compiled for one in again]]))
"""


def test_what_is_told() -> None:
    told: list[Prepared] = []
    types = ["F16", "q4_1", "IQ4_XS", "Q8_0", "Q4_1"]  # floats and ggml's types need nothing
    done = prepare(types, [torch.bfloat16, torch.float32], importance=True, announce=told.append)
    assert [one.type_name for one in done] == ["Q4_1", "Q8_0"]
    assert told == done
    assert all(one.seconds > 0 for one in done)
    assert not any(one.compiled for one in prepare(types, [torch.float32], importance=True))
    assert prepare([], []) == []


@pytest.mark.slow
def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for first in (True, False):
        run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        told, again = json.loads(run.stdout)
        assert told == [["Q4_1", first], ["Q8_0", first]]
        assert again == [False, False]
