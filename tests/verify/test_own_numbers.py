"""The second opinion on agreement: asked after a failure alone, of what is the source's, and never looser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quirks_planted import change_config, change_tensors
from zoo_types import Zoo

from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.families.view import ModelView
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.opening import layout_of, open_artifact
from qexport.formats.tolerance import EIGHT_BITS, FOUR_BITS, SAME, Tolerance
from qexport.onepass.execute import execute
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.own_numbers import or_by_own_numbers, own_reference
from qexport.verification.reference import TransformersReference, reference_from_view

REFERENCE: Any = object()
APART = Verdict(Check.AGREEMENT, Status.FAIL, "70.0% of 64 tokens agree with the source", {"agreement": 0.7})


def own_of(path: Path, source: ModelView) -> TransformersReference | None:
    found = OnDisk(path)
    return own_reference(layout_of(found).describe(found), source)


def judge(status: Status, asked: list[Tolerance]) -> Callable[[Any, Tolerance], Verdict]:
    def judged(_: Any, limits: Tolerance) -> Verdict:
        asked.append(limits)
        return Verdict(
            Check.AGREEMENT, status, "99.0% of 64 tokens agree with the source", {"agreement": 0.99}
        )

    return judged


def test_what_a_small_model_makes_of_rounding_is_no_fault() -> None:
    asked: list[Tolerance] = []
    found = or_by_own_numbers(APART, FOUR_BITS, lambda: REFERENCE, judge(Status.PASS, asked))
    assert found.status is Status.PASS
    assert found.summary.startswith(
        "99.0% of 64 tokens agree with the artifact's own numbers; beside the source"
    )
    assert found.data["agreement"] == 0.7  # what is told of it stays that beside the source
    assert found.data["by_own_numbers"] == {"agreement": 0.99}
    (limits,) = asked
    assert (limits.agreement, limits.near_tie, limits.mean_delta) == (
        EIGHT_BITS.agreement,
        EIGHT_BITS.near_tie,
        EIGHT_BITS.mean_delta,
    )


def test_what_is_not_as_its_own_numbers_say_stays_failed_and_strict_types_stay_strict() -> None:
    asked: list[Tolerance] = []
    found = or_by_own_numbers(APART, SAME, lambda: REFERENCE, judge(Status.FAIL, asked))
    assert found.status is Status.FAIL
    assert "; 99.0% of 64 tokens agree with the artifact's own numbers" in found.summary
    assert (asked[0].agreement, asked[0].mean_delta) == (SAME.agreement, SAME.mean_delta)


@pytest.mark.parametrize("status", [Status.PASS, Status.SKIPPED])
def test_it_is_asked_after_a_failure_alone(status: Status) -> None:
    said = Verdict(Check.AGREEMENT, status, "")
    assert or_by_own_numbers(said, SAME, lambda: pytest.fail("asked"), judge(Status.PASS, [])) is said
    assert or_by_own_numbers(APART, SAME, lambda: None, judge(Status.PASS, [])) is APART


@pytest.mark.parametrize("name", ["qwen3_5_moe", "qwen3_5"])
def test_the_reference_has_the_numbers_that_are_stored(zoo: Zoo, tmp_path: Path, name: str) -> None:
    repaired = diagnose(LocalCheckpoint(zoo(name))).repaired
    execute([plan_nvfp4(repaired, Nvfp4Options())], tmp_path / "out", threads=1)
    own = own_of(tmp_path / "out", repaired.view())
    assert own is not None
    mine, stored = ([5, 6, 7, 8, 9, 10], open_artifact(tmp_path / "out").view())
    assert own.score(mine, 1) == reference_from_view(stored).score(mine, 1)
    assert own.score(mine, 1) != reference_from_view(repaired.view()).score(mine, 1)


def test_what_it_says_or_holds_otherwise_is_no_second_opinion(zoo: Zoo, tmp_path: Path) -> None:
    view = diagnose(LocalCheckpoint(zoo("qwen2"))).repaired.view()
    for name in ("same", "turned", "unbiased"):
        shutil.copytree(zoo("qwen2"), tmp_path / name)
    change_config(tmp_path / "turned", lambda config: config.update(rope_theta=10000.0))
    lost = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(tmp_path / "unbiased", lambda t: {n: x for n, x in t.items() if n != lost})
    assert own_of(tmp_path / "same", view) is not None
    assert own_of(tmp_path / "turned", view) is None
    assert own_of(tmp_path / "unbiased", view) is None
