"""``qexport init``: a first recipe for a model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from qexport.cli._options import JSON, OVERWRITE, model_argument
from qexport.cli._output import Output
from qexport.errors import UsageProblem


@click.command("init")
@model_argument
@click.option(
    "--base",
    metavar="BASE",
    help="The model that was fine-tuned, a folder or a Hub id: MTP head and vision tower are taken of it "
    "where MODEL has lost them.",
)
@click.option("--base-revision", help="Branch, tag or commit of that BASE on the Hub.")
@click.option(
    "--owner", default="you", show_default=True, help="Whose repositories on the Hub it is published to."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The recipe's file.  [default: the model's name.yaml, here]",
)
@OVERWRITE
@JSON
def command(
    model: str,
    revision: str | None,
    base: str | None,
    base_revision: str | None,
    owner: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a recipe for MODEL from what its headers show: every format that can hold it, with its sizes.

    Nothing of its weights is read or downloaded. What is lost (an MTP head, a tower) is written down with the
    ways out.

    \b
    Examples:
      qexport init ./merged
      qexport init org/Tuned-9B --base Qwen/Qwen3.5-9B -o tuned.yaml
    """
    from qexport.doctor.explain import explain
    from qexport.formats.gguf.file_name import model_stem
    from qexport.recipe.across import is_repository
    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.first import first_recipe, look_at
    from qexport.recipe.load import recipe_of
    from qexport.run.model import Openings, examine

    if not is_repository(f"{owner}/x"):
        raise UsageProblem(
            f"--owner: {owner!r} is no name on the Hub", hint="Name a user or an organization: --owner you."
        )
    output = Output(as_json=as_json)
    opened = Openings()
    choice = ModelChoice(model, revision, base=base, base_revision=base_revision)
    looked = look_at(choice, lambda each: examine(each, download=False, opened=opened))
    explained = explain(looked.diagnosis)
    path = out or Path(f"{model_stem(explained.label)}.yaml")
    if path.exists() and not overwrite:
        raise UsageProblem(f"{path} is already there", hint="Add --overwrite, or name another with --out.")
    text = first_recipe(
        looked,
        explained,
        _from(path.parent, model),
        None if base is None else _from(path.parent, base),
        owner,
    )
    recipe = recipe_of(text, path)  # before it is written: a file that does not load is of no use
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    output.document(
        {"recipe": str(path), "artifacts": [each.name for each in recipe.artifacts], "text": text}
    )
    output.text(f"{path}: {', '.join(each.name for each in recipe.artifacts)}")
    for part in ("mtp", "vision"):
        if getattr(looked.choice, part) == "drop":
            what = "MTP head" if part == "mtp" else "vision tower"
            output.say(
                f"The model has lost its {what}, and the recipe drops it; --base BASE takes the base's."
            )
    output.next("run", path, "--dry-run")


def _from(folder: Path, model: str) -> str:
    """What stands for a model in a recipe: of a folder its path from there."""
    if not Path(model).exists():
        return model
    there = os.path.relpath(Path(model).expanduser(), folder).replace(os.sep, "/")
    return there if there.startswith("..") else f"./{there}"
