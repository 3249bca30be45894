"""Kernels made ready: what had to be compiled is told, once, and later processes find it in the cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qexport.codecs import warmup
from qexport.codecs.contract import Blocks, Matrices, MlxAffine
from qexport.codecs.warmup import Prepared, prepare_encoders

CODE = """
import json, torch
from qexport.codecs.contract import Blocks
from qexport.codecs.warmup import prepare_encoders
told = []
samples = [(Blocks(name), False, torch.bfloat16, 32) for name in ("Q4_1", "Q8_0")]
first = prepare_encoders(samples, announce=lambda one: told.append(one.type_name))
again = prepare_encoders(samples)
print(json.dumps([told, [[one.type_name, one.compiled] for one in first], [one.compiled for one in again]]))
"""


def test_one_of_each_kind_is_encoded() -> None:
    kinds = [("Q4_1", False), ("Q4_1", True), ("Q8_0", False), ("Q4_1", False)]
    samples = [
        (Blocks(name), weighted, dtype, 32)
        for name, weighted in kinds
        for dtype in (torch.bfloat16, torch.float32)
    ]
    done = prepare_encoders(samples)
    assert [one.type_name for one in done] == ["Q4_1"] * 4 + ["Q8_0"] * 2
    assert all(one.seconds > 0 for one in done)
    told: list[Prepared] = []
    assert not any(one.compiled for one in prepare_encoders(samples, announce=told.append))
    assert told == []
    assert prepare_encoders([]) == []


def test_feedback_is_made_ready_for_types_that_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []

    def encode(stored: Any, rows: torch.Tensor, first_row: int, known: Matrices) -> None:
        assert known.feedback is not None
        assert known.feedback[0] is not None
        seen.append((stored.name, rows.shape[1] == len(known.feedback[0].order)))

    monkeypatch.setattr(warmup, "encode_rows", encode)
    bf16 = torch.bfloat16
    kinds = [(Blocks("Q8_0"), bf16), (Blocks("Q4_K"), bf16), (MlxAffine(4, 64), bf16)]
    warmup.prepare_feedback([*kinds, kinds[1]])
    assert seen == [("Q4_K", True), ("4-bit g64", True)]


@pytest.mark.slow
def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for first in (True, False):
        run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        told, done, again = json.loads(run.stdout)
        assert told == (["Q4_1", "Q8_0"] if first else [])
        assert done == [["Q4_1", first], ["Q8_0", first]]
        assert again == [False, False]
