"""The program that is run where there is a GPU works: tiny, on a CPU; and it says what it did not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo_types import Zoo

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu_checks.py"


def checked(*words: str) -> tuple[int, str]:
    known = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *words]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_all_of_it_on_a_cpu(zoo: Zoo) -> None:
    code, words = checked(str(zoo("qwen3_5")), "--device", "cpu", "--tokens", "160", "--chunk", "32")
    assert code == 0, words
    states = [line.split()[0] for line in words.splitlines()]
    assert states == ["passed"] * 11
    for check in ("forward", "backward", "head's gradients", "2 processes on cpu, sensitivities"):
        assert check in words


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_said_to_have_passed(zoo: Zoo) -> None:
    code, words = checked(str(zoo("qwen3_5")))
    assert code == 0
    assert words.split()[:2] == ["not", "run"]
    assert "passed" not in words
