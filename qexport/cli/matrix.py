"""``qexport matrix``: a recipe as jobs for CI."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._output import Output
from qexport.cli._recipe import burdens_of, human_time, limit_options, recipe_options, show_jobs
from qexport.recipe.jobs import Job, Limits, plan_jobs
from qexport.recipe.load import load_recipe
from qexport.recipe.select import select

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["command", "job_json"]


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
def command(
    recipe_path: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    params: int | None,
    max_disk: int | None,
    max_memory: int | None,
    max_jobs: int,
    cores: int,
    form: str,
) -> None:
    """Print RECIPE as jobs: what shares a read runs together, as far as disk and memory of one machine allow.

    Headers are enough, and are read from the Hub where the model is there; nothing is downloaded. With
    --params sizes are guessed instead.

    \b
    Examples:
      qexport matrix recipes/qwen3.6-27b.yaml --max-disk 120G
      qexport matrix recipes/qwen3.6-27b.yaml --params 27B --max-disk 120G --format github
    """
    output = Output(as_json=form != "text")
    recipe = load_recipe(recipe_path, overrides)
    units = select(recipe, only)
    limits = Limits(max_disk, max_memory, max_jobs, cores)
    jobs = plan_jobs(recipe, burdens_of(output, recipe, units, params), limits)
    entries = [job_json(job, recipe_path, overrides) for job in jobs]
    if form == "github":
        click.echo(json.dumps({"include": entries}, separators=(",", ":")))
        return
    output.document(entries)
    show_jobs(output, jobs)


def job_json(job: Job, recipe: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A job as an entry of a matrix: its name, the words for ``--only``, the command, and what it needs."""
    words = ["qexport", "run", str(recipe), "--only", ",".join(job.only)]
    words += [word for given in overrides for word in ("--set", given)]
    return {
        "name": job.name,
        "only": ",".join(job.only),
        "command": shlex.join(words),
        "output_bytes": job.output,
        "disk_bytes": job.disk,
        "memory_bytes": job.memory,
        "seconds": round(job.seconds),
        "time": human_time(job.seconds),
        "exact": job.exact,
    }
