"""``qexport matrix``: a recipe as jobs for CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._output import Output
from qexport.cli._recipe import job_json, jobs_of, limit_options, recipe_options, show_jobs
from qexport.cli._terminal import put, visible
from qexport.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.arrived import Arrived
    from qexport.recipe.recipe import Recipe
    from qexport.recipe.select import Unit


@click.command("matrix")
@recipe_options
@limit_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help='text is a table; json a list of jobs; github one line for a strategy matrix: {"include": [...]}.',
)
@click.option(
    "--check",
    "arrived",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Instead of jobs: is everything in DIR, as its receipts say, and verified? Prints a Markdown table; "
    "the exit code is 4 if not.",
)
def command(form: str, arrived: Path | None, **given: Any) -> None:
    """Print RECIPE as jobs: what shares a read runs together, as far as disk and memory of one machine allow.

    Headers are enough, and are read from the Hub where the model is there; nothing is downloaded. With
    --params sizes are guessed instead.

    \b
    Examples:
      qexport matrix qwen3.6-27b --max-disk 120G
      qexport matrix qwen3.6-27b --params 27B --max-disk 120G --format github
      qexport matrix qwen3.6-27b --only mlx --check out
    """
    from qexport.recipe.load import load_recipe
    from qexport.recipe.select import select

    output = Output(as_json=form != "text")
    recipe = load_recipe(given["recipe_path"], given["overrides"])
    units = select(recipe, given["only"])
    if arrived is not None:
        _check(output, recipe, units, arrived)
        return
    jobs = jobs_of(output, recipe, units, given)
    entries = [job_json(recipe, job, given["overrides"]) for job in jobs]
    if form == "github":
        put(visible(json.dumps({"include": entries}, separators=(",", ":"))))
        return
    output.document(entries)
    show_jobs(output, jobs)


def _check(output: Output, recipe: Recipe, units: Sequence[Unit], folder: Path) -> None:
    """Say what is there; raise VerificationError where something is missing, damaged or has not passed."""
    from qexport.receipt.state import State
    from qexport.recipe.arrived import look, markdown

    found = look(recipe, units, folder)
    output.document(
        [
            {"unit": str(a.unit), "folder": a.folder, "bytes": a.nbytes, "state": a.state.value, "why": a.why}
            for a in found
        ]
    )
    output.text(markdown(found))
    bad = [a for a in found if a.state is not State.PASSED and not _excused(recipe, a)]
    if bad:
        raise VerificationError(
            f"not ready to be published: {', '.join(f'{a.unit} ({a.state})' for a in bad)}",
            hint="Run those again: qexport run RECIPE --only NAME.",
        )


def _excused(recipe: Recipe, arrived: Arrived) -> bool:
    """The recipe itself says ``verify: false``, or takes what nothing could run or compare."""
    from qexport.receipt.state import State

    artifact = recipe.artifact(arrived.unit.artifact)
    if artifact.unverified == "allow" and arrived.state in (State.NOT_RUN, State.UNCOMPARED):
        return True
    return arrived.state is State.NOT_RUN and artifact.verify is None
