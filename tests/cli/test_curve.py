"""`inspect --curve`: predicted loss against size, and what `--size` then makes is what the curve says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import ok, run

from qexport.assign.aim import Aim
from qexport.demo import MODEL
from qexport.evidence.backward import TwoWayStream
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes, read_imatrix
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.formats.gguf.importance import gguf_importance
from qexport.formats.gguf.options import GgufOptions
from qexport.recipe.choice import ModelChoice
from qexport.run.allocation import offers
from qexport.run.curves import Curve, curves_of, marks
from qexport.run.model import examine
from qexport.run.target import Target
from qexport.run.watcher import Watcher


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> ImportanceMatrix:
    view = examine(ModelChoice(str(MODEL)), download=False).repaired.view()
    ids = np.random.default_rng(0).integers(0, 2000, (2, 128), dtype=np.int32)
    squares = InputSquares()
    found = TwoWayStream(view, StreamOptions()).run_both(ids, squares, text="t").sensitivity
    about: dict[str, Any] = {"datasets": ["d"], "chunk_count": 2, "chunk_size": 128, "label": "m"}
    made = gguf_importance(view, squares.sums, squares.counts, sensitivity=found, **about)
    file = tmp_path_factory.mktemp("matrix") / "m.gguf_file"
    file.write_bytes(imatrix_bytes(made))
    return replace(read_imatrix(file), label=str(file))


def test_a_point_of_the_curve_is_what_a_file_of_that_size_is(matrix: ImportanceMatrix) -> None:
    diagnosis = examine(ModelChoice(str(MODEL)), download=False)
    target = Target(GgufOptions(max_kld=1.0, imatrix=matrix), Path("gguf"))
    (offer,) = offers([target], diagnosis, Watcher())
    points = offer.curve(most=20)
    assert len(points) >= 15
    pairs = list(pairwise(points))
    assert all(one.nbytes < other.nbytes and one.kld > other.kld for one, other in pairs)
    for point in points[:: len(points) // 3]:
        made = offer.settled(Aim("size", point.nbytes + 4096))  # a header may grow by a few names
        predicted = made.options.types_from.predicted.kld
        assert predicted == pytest.approx(point.kld, rel=0.1)
        assert made.plans(diagnosis)[0][0].size <= point.nbytes + 4096


def test_the_command(matrix: ImportanceMatrix) -> None:
    ran = ok("inspect", MODEL, "--imatrix", matrix.label, "--curve")
    assert "The smallest files that are predicted to diverge by no more" in ran.stdout
    document = ok("inspect", MODEL, "--imatrix", matrix.label, "--curve", "--json").json()
    curve = next(each for each in document["curves"] if each["format"] == "gguf")
    assert len(curve["points"]) > 50
    assert curve["points"][0]["kld"] > 100 * curve["points"][-1]["kld"] > 0
    assert "curves" not in ok("inspect", MODEL, "--json").json()


def test_refusals(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    blind = tmp_path / "blind.gguf_file"
    blind.write_bytes(imatrix_bytes(replace(matrix, sensitivity=None)))
    for words, said in (
        (("--curve",), "--curve and --imatrix go together"),
        (("--imatrix", blind), "--curve and --imatrix go together"),
        (("--imatrix", blind, "--curve"), "has no sensitivities"),
    ):
        ran = run("inspect", MODEL, *words)
        assert ran.code == 2
        assert said in ran.stderr


def test_the_smallest_file_of_a_divergence(matrix: ImportanceMatrix) -> None:
    (curve,) = [
        each
        for each in curves_of(examine(ModelChoice(str(MODEL)), download=False), matrix, Watcher())
        if each.format == "gguf"
    ]
    for mark in marks([curve]):
        found = curve.at(mark)
        assert found is not None
        assert found.kld <= mark
        assert all(point.kld > mark for point in curve.points if point.nbytes < found.nbytes)
    assert curve.at(0.0) is None
    assert marks([Curve("gguf", ())]) == []
