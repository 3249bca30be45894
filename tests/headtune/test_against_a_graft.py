"""A head that was taken from another model is compared with that model's, not with what the source has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from head_texts import tiny
from zoo_types import Zoo

from qexport.cli.main import cli
from qexport.errors import InputError, UsageProblem
from qexport.formats.gguf.options import GgufOptions
from qexport.receipt.verification import Check, Status, Verification
from qexport.recipe.choice import ModelChoice
from qexport.recipe.recipe import AskedArtifact, Recipe, RecipeModel
from qexport.run.job import run
from qexport.run.local import Local
from qexport.run.measure import measuring
from qexport.run.verify import view_to_compare


@pytest.fixture(scope="module")
def exported(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has a head, exported with another's."""
    out = tmp_path_factory.mktemp("grafted")
    choice = ModelChoice(str(tiny(zoo, seed=5)), mtp="graft", mtp_from=str(tiny(zoo)), vision="drop")
    asked = AskedArtifact("gguf", GgufOptions(("Q8_0",)), ".", None)
    run(Recipe((RecipeModel("model", choice),), (asked,), measure=0), Local(out=out, runtimes=None))
    return next(out.glob("*.gguf"))


def judged(artifact: Path, source: Path, **given: Any) -> Any:
    view = view_to_compare(str(source), None, artifact=artifact, **given)
    with measuring(view, lambda _: None, tokens=256) as measure:
        report = measure.add_to(Verification(artifact.name), artifact)
    return report.finding(Check.MTP_HEAD), report.measures


@pytest.mark.parametrize("mtp", [True, False])
def test_the_graft_is_the_reference_where_it_is_named(zoo: Zoo, exported: Path, mtp: bool) -> None:
    source = tiny(zoo, seed=5, mtp=mtp)
    found, measures = judged(exported, source, mtp_from=str(tiny(zoo)))
    assert found.status is Status.PASS, found.summary
    assert found.data["divergence"]["mean"] < 0.01
    assert measures.source_head.positions == measures.head.positions
    assert measures.source_head.domains


def test_without_its_name_it_is_judged_by_itself(zoo: Zoo, exported: Path) -> None:
    """The receipt says that it is not the source's own, which would be compared with in vain."""
    found, measures = judged(exported, tiny(zoo, seed=5))
    assert "whence it was taken is not named" in found.summary or found.status is Status.FAIL
    assert found.data["source"] is None
    assert measures.head is not None
    assert measures.source_head is None
    other = exported.with_name("no-receipt")
    other.mkdir()
    (other / exported.name).write_bytes(exported.read_bytes())
    found, _ = judged(other / exported.name, tiny(zoo, seed=5))
    assert found.status is Status.FAIL
    assert "from the source's head" in found.summary


def test_a_head_that_does_not_fit_is_no_reference(zoo: Zoo, exported: Path) -> None:
    with pytest.raises(InputError, match="hidden"):
        judged(exported, tiny(zoo, seed=5), mtp_from=str(tiny(zoo, hidden=128)))


def test_a_reference_needs_a_source(exported: Path) -> None:
    result = CliRunner().invoke(cli, ["verify", str(exported), "--mtp-from", "org/base"])
    assert isinstance(result.exception, UsageProblem)
    assert "--against MODEL" in str(result.exception.hint)
