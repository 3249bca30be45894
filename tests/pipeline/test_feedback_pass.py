"""Files with error feedback: the same size and layout, the same bytes however they come about, less lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_text import own_words

from qexport.checkpoint.opening import open_checkpoint
from qexport.demo import MODEL
from qexport.doctor.diagnose import Diagnosis, diagnose
from qexport.errors import UsageProblem
from qexport.evidence import products
from qexport.evidence.imatrix_file import ImportanceMatrix
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.products import InputProducts
from qexport.evidence.store import Kind
from qexport.evidence.stream import LayerStream
from qexport.families.view import ModelView
from qexport.formats.gguf.importance import gguf_importance
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.opening import open_artifact
from qexport.onepass.ledger import Ledger
from qexport.onepass.needs import in_layers
from qexport.onepass.steps import merge_steps
from qexport.run import steps
from qexport.run.feedback import FeedbackText
from qexport.run.target import Item, Target, plan
from qexport.verification.divergence import compare_runs
from qexport.verification.text_run import run_text

FACTS = {"corpus": "made here", "tokens_sha256": "0"}
EXACT = StreamOptions(precision="float32")


def ids() -> np.ndarray:
    return (np.arange(40 * 32, dtype=np.int32) * 7 % 300).reshape(40, 32)


def importance(view: ModelView, tokens: np.ndarray) -> ImportanceMatrix:
    squares = InputSquares()
    LayerStream(view, EXACT).run(tokens, squares)
    about: dict[str, Any] = {"datasets": ["d"], "chunk_count": len(tokens), "chunk_size": tokens.shape[1]}
    return gguf_importance(view, squares.sums, squares.counts, label="m.gguf_file", **about)


def formats(matrix: ImportanceMatrix, *, feedback: bool = True) -> dict[str, Any]:
    return {
        "gguf": GgufOptions(("Q4_K_M", "Q3_K_M"), imatrix=matrix, feedback=feedback),
        "mlx": MlxOptions(importance=matrix, feedback=feedback, mtp=("none",)),
        "nvfp4": Nvfp4Options(
            scope="all-linear", scale_search="importance", importance=matrix, feedback=feedback
        ),
        "w4a4": Nvfp4Options(scheme="NVFP4", importance=matrix, scale_search="importance", feedback=feedback),
    }


def planned(diagnosis: Diagnosis, root: Path, asked: dict[str, Any]) -> list[Item]:
    targets = [Target(options, root / word, None, text=FACTS) for word, options in asked.items()]
    return plan(targets, diagnosis)


def write(items: list[Item], diagnosis: Diagnosis, tokens: np.ndarray, threads: int = 2) -> list[Item]:
    text = FeedbackText(tokens, EXACT, FACTS)
    return steps.write(items, diagnosis, threads=threads, text=text)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".gguf", ".safetensors")
    }


@pytest.fixture
def moe(zoo: Any) -> Diagnosis:
    return diagnose(open_checkpoint(str(zoo("qwen3_5_moe"))))


def test_the_same_bytes_however_they_come_about(
    moe: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together or alone, on any number of threads, interrupted and gone on with."""
    monkeypatch.setattr(products, "FLOOR", 2.4)  # some experts have seen less
    asked = formats(importance(moe.repaired.view(), ids()))
    together = write(planned(moe, tmp_path / "together", asked), moe, ids(), threads=3)
    expected = contents(tmp_path / "together")
    for word, options in asked.items():
        write(planned(moe, tmp_path / "alone", {word: options}), moe, ids(), threads=1)
    assert contents(tmp_path / "alone") == expected

    items = planned(moe, tmp_path / "again", asked)
    monkeypatch.setattr(Ledger, "due", lambda self: True)
    record = Ledger.write

    def stop(self: Ledger, entry: Any) -> None:
        record(self, entry)
        if entry.steps >= 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            write(items, moe, ids())
    assert (Ledger(tmp_path / "again" / "gguf").read() or pytest.fail("no entry")).steps >= 12
    again = write(planned(moe, tmp_path / "again", asked), moe, ids())
    assert contents(tmp_path / "again") == expected

    for item, other in zip(together, again, strict=True):
        if item.attached:  # the tower's file
            continue
        told = item.plan.details["feedback"]
        assert told == other.plan.details["feedback"]
        assert told["left_plain"]
        assert any("rounded without error feedback" in note for note in item.plan.notes)
        assert item.fingerprint == other.fingerprint
        assert item.target.chosen()["feedback"] == FACTS


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_feedback_pass as here
from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.onepass.ledger import Ledger
record = Ledger.write
def write(self, entry):
    record(self, entry)
    if entry.steps >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
Ledger.write, Ledger.due = write, lambda self: True
model = diagnose(open_checkpoint(sys.argv[1]))
here.write(here.planned(model, Path(sys.argv[2]), here.one_gguf(model)), model, here.ids())
"""


def one_gguf(diagnosis: Diagnosis) -> dict[str, Any]:
    found = importance(diagnosis.repaired.view(), ids())
    return {"gguf": GgufOptions(("Q4_K_M",), imatrix=found, feedback=True)}


@pytest.mark.slow
def test_a_process_that_was_killed_is_gone_on_with(zoo: Any, tmp_path: Path) -> None:
    here, folder = Path(__file__).parent, str(zoo("qwen3_5"))
    model = diagnose(open_checkpoint(folder))
    words = [folder, str(tmp_path / "killed"), str(here), str(here.parent)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (Ledger(tmp_path / "killed" / "gguf").read() or pytest.fail("no entry")).steps >= 12
    assert not contents(tmp_path / "killed")  # nothing has its name yet
    for name in ("killed", "whole"):
        write(planned(model, tmp_path / name, one_gguf(model)), model, ids())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_steps_follow_the_stream(moe: Diagnosis, tmp_path: Path) -> None:
    view = moe.repaired.view()
    items = planned(moe, tmp_path, formats(importance(view, ids())))
    plans = [item.plan for item in items]
    stream = InputProducts(view, ids(), EXACT)
    plain = merge_steps(plans)
    ordered = in_layers(plain, stream.moment)
    assert sorted(map(id, ordered)) == sorted(map(id, plain))
    needed = [
        stream.moment(need.of[0])
        for step in ordered
        for _, tensor in step.outputs
        if (need := tensor.need(Kind.INPUT_PRODUCTS))
    ]
    assert needed == sorted(needed)
    assert set(needed) == set(range(view.layers + 2))  # the output matrix, and the MTP block last


def test_without_a_text_nothing_is_written(moe: Diagnosis, tmp_path: Path) -> None:
    items = planned(moe, tmp_path, formats(importance(moe.repaired.view(), ids())))
    with pytest.raises(UsageProblem, match="need a text"):
        steps.write(items, moe)
    assert not contents(tmp_path)


@pytest.mark.slow
def test_less_is_lost_at_the_same_size(tmp_path: Path) -> None:
    """The demo model, on words of its own world that it was not calibrated on."""
    demo = diagnose(open_checkpoint(str(MODEL)))
    view = demo.repaired.view()
    words = np.concatenate([own_words(seed) for seed in range(11, 15)])
    matrix = importance(view, words)
    held = own_words(99)
    lost: dict[tuple[bool, str], float] = {}
    sizes: dict[tuple[bool, str], int] = {}
    with run_text(view, held) as exact:
        for feedback in (False, True):
            root = tmp_path / str(feedback)
            for item in write(planned(demo, root, formats(matrix, feedback=feedback)), demo, words):
                if item.plan.kind == "mmproj":
                    continue
                key = (feedback, f"{item.plan.kind} {item.plan.label}")
                with run_text(open_artifact(item.path, like=view).view(), held) as other:
                    lost[key] = compare_runs(exact, other).mean
                sizes[key] = item.plan.size
    for _, label in lost:
        assert abs(sizes[True, label] - sizes[False, label]) < 4096, label
        assert lost[True, label] < 0.95 * lost[False, label], lost
