"""``qexport matrix``: recipes as jobs for CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from qexport.cli._output import Output
from qexport.cli._recipe import in_markdown, limit_options, plan_all, recipe_options, show_jobs
from qexport.cli._terminal import put, visible
from qexport.errors import UsageProblem, VerificationError


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
    "--summary",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append the jobs to FILE as Markdown, too, such as $GITHUB_STEP_SUMMARY.",
)
@click.option(
    "--check",
    "arrived",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Instead of jobs: is everything in DIR, as its receipts say, and verified? Prints a Markdown table; "
    "the exit code is 4 if not.",
)
def command(form: str, arrived: Path | None, summary: Path | None, **given: Any) -> None:
    """Print recipes as jobs: what shares a read runs together, as far as disk and memory of a machine allow.

    Headers are enough, and are read from the Hub where the model is there; nothing is downloaded. With
    --params sizes are guessed instead. A recipe that cannot be planned is named in the end, and holds up no
    other.

    \b
    Examples:
      qexport matrix qwen3.6-27b --max-disk 120G
      qexport matrix qwen3.6-27b --params 27B --max-disk 120G --format github
      qexport matrix recipes/*.yaml --if-changed --max-disk 120G --format github
      qexport matrix qwen3.6-27b --only mlx --check out
    """
    output = Output(as_json=form != "text")
    if arrived is not None:
        _check(output, given, arrived)
        return
    planned = plan_all(output, given)
    entries = planned.entries(given["overrides"])
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(in_markdown(planned))
    if form == "github":
        Output.printed = True
        put(visible(json.dumps({"include": entries}, separators=(",", ":"))))
    else:
        output.document(entries)
        show_jobs(output, planned)
    if (error := planned.problem()) is not None:
        raise error


def _check(output: Output, given: dict[str, Any], folder: Path) -> None:
    """Say what is there; raise VerificationError where something is missing, damaged or has not passed."""
    from qexport.recipe.arrived import look, markdown
    from qexport.recipe.load import load_recipe
    from qexport.recipe.select import select

    path, *others = given["recipe_paths"]
    if others:
        raise UsageProblem("--check DIR is for one recipe", hint="Each has a folder of its own.")
    recipe = load_recipe(path, given["overrides"])
    found = look(recipe, select(recipe, given["only"]), folder)
    output.document(
        [
            {"unit": str(a.unit), "folder": a.folder, "bytes": a.nbytes, "state": a.state.value, "why": a.why}
            for a in found
        ]
    )
    output.text(markdown(found))
    bad = [a for a in found if not recipe.artifact(a.unit.artifact).good_enough(a.state)]
    if bad:
        raise VerificationError(
            f"not ready to be published: {', '.join(f'{a.unit} ({a.state})' for a in bad)}",
            hint="Run those again: qexport run RECIPE --only NAME.",
        )
