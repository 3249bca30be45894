"""The compressed-tensors layout: llm-compressor's bytes and config, from the goldens and from itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fp8_folders import config_of, same, tensors_in, write_fp8
from make_fp8_golden import CASES, GOLDEN, digest
from zoo_types import Zoo

KNOWN: dict[str, Any] = json.loads(GOLDEN.read_text())["cases"]
TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("case", CASES)
def test_golden(zoo: Zoo, tmp_path: Path, case: str) -> None:
    name, options, _, scheme = CASES[case]
    write_fp8(zoo(name, **options), tmp_path / "out", mtp="auto", scheme=scheme)
    tensors = tensors_in(tmp_path / "out")
    assert len(tensors) == KNOWN[case]["tensors"]
    assert digest(tensors) == KNOWN[case]["sha256"]
    mine, peers = config_of(tmp_path / "out")["quantization_config"], dict(KNOWN[case]["config"])
    assert set(mine.pop("ignore")) == set(peers.pop("ignore"))
    assert mine == peers


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llmcompressor") is None, reason="llm-compressor is not installed")
def test_equals_model_free_ptq(zoo: Zoo, tmp_path: Path) -> None:
    maker = str(Path(__file__).parent / "make_fp8_golden.py")
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-W", "ignore", maker, *CASES, str(tmp_path / "peer")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    for case, (name, options, _, scheme) in CASES.items():
        write_fp8(zoo(name, **options), tmp_path / case, scheme=scheme)
        ours, theirs = tensors_in(tmp_path / case), tensors_in(tmp_path / "peer" / case)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not same(ours[key], theirs[key])] == []
