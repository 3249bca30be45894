"""The gate on how far a divergence may be from what was predicted of it: either way, and never unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qexport.assign.assignment import Prediction
from qexport.checkpoint.local import LocalCheckpoint
from qexport.demo import MODEL
from qexport.doctor import diagnose
from qexport.formats.gguf.options import GgufOptions
from qexport.receipt.measures import Kld, Measures
from qexport.receipt.verification import Verification
from qexport.recipe.gates import Gates
from qexport.run.gates import judge_gates
from qexport.run.target import Item, Target, plan

LIMIT = 1.5


@pytest.fixture(scope="module")
def item() -> Item:
    target = Target(
        GgufOptions(types=("Q4_K_M",), no_mmproj=True), Path("out"), gates=Gates(predicted_ratio=LIMIT)
    )
    (made,) = plan([target], diagnose(LocalCheckpoint(MODEL)))
    return made


def judged(item: Item, predicted: float | None, measured: float | None) -> tuple[bool, float | None]:
    foretold = None if predicted is None else Prediction(predicted)
    chosen = replace(item.plan.assignment, predicted=foretold)  # type: ignore[type-var]
    kld = None if measured is None else Kld(measured)
    report = Verification(item.name, None, (), measures=Measures(kld=kld))
    (gate,) = judge_gates(
        [replace(item, plan=replace(item.plan, assignment=chosen), report=report)], head=True
    )
    assert (gate.gate, gate.limit) == ("predicted_ratio", LIMIT)
    return gate.passed, gate.value


@pytest.mark.parametrize(
    ("predicted", "measured", "kept"),
    [
        (0.01, 0.01, True),
        (0.01, 0.0149, True),
        (0.01, 0.0068, True),
        (0.01, 0.0151, False),
        (0.01, 0.006, False),
    ],
)
def test_either_way(item: Item, predicted: float, measured: float, kept: bool) -> None:
    passed, value = judged(item, predicted, measured)
    assert passed is kept
    assert value == pytest.approx(max(predicted / measured, measured / predicted))


@pytest.mark.parametrize(("predicted", "measured"), [(None, 0.01), (0.01, None)])
def test_what_was_not_predicted_or_not_measured_passes_nothing(
    item: Item, predicted: float | None, measured: float | None
) -> None:
    assert judged(item, predicted, measured) == (False, None)


def test_there_is_no_such_gate_unless_a_recipe_asks(item: Item) -> None:
    free = replace(item, target=replace(item.target, gates=Gates()))
    assert judge_gates([free], head=True) == []
