"""``qexport run``: everything in a recipe, from one read of each model; here, or on Hugging Face Jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._hf_jobs import hf_job_options, send
from qexport.cli._options import FILE, JSON, OUT, OVERWRITE, THREADS
from qexport.cli._output import Gathered, Output
from qexport.cli._recipe import job_json, jobs_of, limit_options, recipe_options, show_jobs
from qexport.evidence.options import StreamOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.recipe import Recipe
    from qexport.recipe.select import Unit
    from qexport.run.job import Local


@click.command("run")
@recipe_options
@OUT
@click.option("--no-verify", is_flag=True, help="Do not run what was written. Receipts say so.")
@click.option(
    "--llama-server",
    metavar="PATH",
    type=FILE,
    help="Verify GGUF files with this llama-server instead of the one inside xllamacpp.",
)
@click.option(
    "--runtime-python",
    "pythons",
    multiple=True,
    metavar="RUNTIME=PATH",
    help="The Python that has a runtime which the recipe asks for, e.g. vllm=~/vllm/bin/python.",
)
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Exit with 0 where nothing is wrong, but something was not run, or not compared with its source.",
)
@click.option(
    "--measure", type=click.IntRange(0, 1 << 30), metavar="TOKENS", help="Instead of the recipe's number."
)
@click.option("--device", default="cpu", show_default=True, help="Where importance is collected.")
@click.option("--push", "pushing", flag_value="push", help="Publish what has passed, as the recipe says.")
@click.option("--push-dry-run", "pushing", flag_value="rehearse", help="Show what --push would publish.")
@click.option("--dry-run", is_flag=True, help="Print sizes, disk and a time estimate; write nothing.")
@click.option(
    "--on",
    "where",
    type=click.Choice(["here", "hf-jobs"]),
    default="here",
    show_default=True,
    help="hf-jobs submits the same groups as `qexport matrix` prints.",
)
@hf_job_options
@limit_options
@THREADS
@OVERWRITE
@JSON
def command(as_json: bool, dry_run: bool, where: str, **given: Any) -> None:
    """Write every artifact of RECIPE, from one read of each model, and prove it.

    Folders are made below --out, the current folder by default. One calibration serves all that want
    importance. A run that was stopped or killed goes on when it is started again; what is there already, from
    the same source and settings, is not made again. In the end the recipe's gates are judged and report.html,
    report.md and report.json written.

    \b
    Examples:
      qexport run demo -o demo-out --push-dry-run
      qexport run qwen3.6-27b --dry-run
      qexport run qwen3.6-27b --only gguf:Q4_K_M,mlx --set source.model=./merged
      qexport run qwen3.6-27b --on hf-jobs --hf-bucket you/exports --max-disk 800G --dry-run
    """
    from qexport.recipe.load import load_recipe
    from qexport.recipe.select import select
    from qexport.run.job import run

    output = Output(as_json=as_json)
    recipe = load_recipe(given["recipe_path"], given["overrides"])
    if given["measure"] is not None:
        recipe = replace(recipe, measure=given["measure"])
    units = select(recipe, given["only"])
    if where == "hf-jobs":
        send(output, recipe, units, given, dry_run=dry_run)
    elif dry_run:
        _rehearse(output, recipe, units, given)
    else:
        gathered = Gathered(output)
        outcome = run(recipe, _local(given), gathered, units)
        output.document(gathered.documents)
        outcome.raise_problem()
        if recipe.publish and not given["pushing"]:
            output.next("push", given["out"] or ".", "--recipe", given["recipe_path"], "--dry-run")


def _rehearse(output: Output, recipe: Recipe, units: Sequence[Unit], given: dict[str, Any]) -> None:
    from qexport.onepass.execute import default_threads
    from qexport.run.jobs import MachineLimits

    limits = MachineLimits(None, None, given["max_jobs"], given["threads"] or default_threads())
    jobs = jobs_of(output, recipe, units, given, limits)
    output.document([job_json(recipe, job, given["overrides"]) for job in jobs])
    show_jobs(output, jobs)


def _local(given: dict[str, Any]) -> Local:
    from qexport.run.job import Local, Runtimes

    pythons: dict[str, Path] = {}
    for text in given["pythons"]:
        name, equals, path = text.partition("=")
        if not equals or not Path(path).expanduser().is_file():
            raise click.BadParameter(f"{text!r} is not RUNTIME=PATH", param_hint="--runtime-python")
        pythons[name] = Path(path).expanduser()
    return Local(
        out=given["out"] or Path(),
        runtimes=None if given["no_verify"] else Runtimes(given["llama_server"], pythons),
        stream=StreamOptions(device=given["device"], threads=given["threads"]),
        threads=given["threads"],
        overwrite=given["overwrite"],
        allow_unverified=given["allow_unverified"],
        report=True,
        pushing=given["pushing"],
    )
