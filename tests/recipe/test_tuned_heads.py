"""`mtp: {mode: tune}`: what a recipe may say, and that the head is made once and taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qexport.errors import UsageProblem
from qexport.headtune.folder import RECEIPT
from qexport.recipe.load import load_recipe
from qexport.run import head
from qexport.run.head import with_tuned_heads
from qexport.run.local import Local
from qexport.run.watcher import Watcher

RECIPE = """
source: {model: MODEL}
mtp: {mode: tune, base: org/Base, text: own.jsonl, drafts: sampling, steps: 7, seed: 3}
artifacts:
  - gguf: {types: [Q8_0]}
"""


def recipe_of(folder: Path, text: str = RECIPE) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_what_a_recipe_says_of_tuning(tmp_path: Path) -> None:
    (subject,) = recipe_of(tmp_path).subjects
    assert (subject.choice.mtp, subject.choice.mtp_from) == ("graft", "org/Base")
    assert subject.tuning.text == tmp_path / "own.jsonl"
    train = subject.tuning.options.train
    assert (train.mode, train.steps, train.seed, train.depth) == ("sampling", 7, 3, 3)
    (alone,) = recipe_of(tmp_path, RECIPE.replace("base: org/Base, text: own.jsonl, ", "")).subjects
    assert (alone.choice.mtp, alone.tuning.text) == ("auto", None)
    plain = "source: {model: M}\nmtp: {mode: keep}\nartifacts:\n  - gguf: {types: [Q8_0]}\n"
    (kept,) = recipe_of(tmp_path, plain).subjects
    assert kept.tuning is None


def test_keys_of_tuning_go_with_tuning(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="'depth' goes with 'mode: tune'"):
        recipe_of(tmp_path, RECIPE.replace("mode: tune, base: org/Base", "mode: keep, depth: 2"))


def test_the_head_is_tuned_once_and_taken(tmp_path: Path, zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower is still looked for in the base: a head's folder has none."""
    base = zoo("qwen3_5", mtp=True)
    (tmp_path / "own.jsonl").write_text('{"input_ids": [1, 2, 3]}')
    text = RECIPE.replace("MODEL", str(base)).replace("org/Base", str(base))
    made: list[Path] = []

    def tuned(_: Any, __: Any, request: Any, ___: Any, made_of: str) -> dict[str, Any]:
        request.out.mkdir(exist_ok=True)
        (request.out / RECEIPT).write_text(f'{{"made_of": "{made_of}"}}')
        made.append(request.out)
        return {"result": "tuned", "reason": ""}

    monkeypatch.setattr(head, "tuned_head", tuned)
    recipe, local = recipe_of(tmp_path, text), Local(out=tmp_path / "out")
    local.out.mkdir()
    for _ in range(2):
        (subject,) = with_tuned_heads(recipe, local, Watcher(), {"model"}).subjects
    folder = tmp_path / "out" / f"{subject.name}-head"
    assert made == [folder]
    assert subject.choice.head_base == (str(folder), None)
    assert subject.choice.tower_base == (str(base), None)
    assert not subject.choice.tower_named
    (tmp_path / "own.jsonl").write_text('{"input_ids": [1, 2, 4]}')
    with_tuned_heads(recipe, local, Watcher(), {"model"})
    assert made == [folder, folder]
    assert with_tuned_heads(recipe, local, Watcher(), {"compare"}) is recipe
    with_tuned_heads(recipe, replace(local, overwrite=True), Watcher(), {"model"})
    assert len(made) == 3
