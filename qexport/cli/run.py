"""``qexport run``: everything in a recipe, from one read of each model; here, or on Hugging Face Jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._hf_jobs import hf_job_options, send
from qexport.cli._options import JSON, OUT, OVERWRITE, THREADS
from qexport.cli._output import Gathered, Output
from qexport.cli._push import raise_refused
from qexport.cli._recipe import burdens_of, choice_of, job_json, limit_options, recipe_options, show_jobs
from qexport.evidence.options import StreamOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.cli._finish import Made
    from qexport.doctor.diagnose import Diagnosis
    from qexport.recipe.recipe import Recipe
    from qexport.recipe.run import Local, Ready
    from qexport.recipe.select import Unit


@click.command("run")
@recipe_options
@OUT
@click.option("--no-verify", is_flag=True, help="Do not run what was written. Receipts say so.")
@click.option(
    "--llama-server",
    metavar="PATH",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
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

    output = Output(as_json=as_json)
    recipe = load_recipe(given["recipe_path"], given["overrides"])
    units = select(recipe, given["only"])
    if where == "hf-jobs":
        send(output, recipe, units, given, dry_run=dry_run)
    elif dry_run:
        _rehearse(output, recipe, units, given)
    else:
        _run(output, recipe, units, given)


def _rehearse(output: Output, recipe: Recipe, units: Sequence[Unit], given: dict[str, Any]) -> None:
    from qexport.export.execute import default_threads
    from qexport.recipe.jobs import Limits, plan_jobs

    limits = Limits(None, None, given["max_jobs"], given["threads"] or default_threads())
    jobs = plan_jobs(recipe, burdens_of(output, recipe, units, given["params"]), limits)
    output.document([job_json(recipe, job, given["overrides"]) for job in jobs])
    show_jobs(output, jobs)


def _run(output: Output, recipe: Recipe, units: Sequence[Unit], given: dict[str, Any]) -> None:
    """What can be refused is refused for every model before the first weight of one is read."""
    from qexport.cli._calibrate import run_calibration
    from qexport.cli._export import raise_unproven, write_and_judge
    from qexport.cli._finish import finish, note_outcomes, raise_gates
    from qexport.cli._report import say_findings
    from qexport.export.sources import Sources
    from qexport.pipeline.model import examine
    from qexport.recipe.run import ready
    from qexport.report.write import REPORT_NAMES

    if given["pushing"]:
        _check_pushes(recipe, units, token=given["pushing"] == "push")
    planned: list[tuple[Ready, Diagnosis]] = []
    for subject in recipe.subjects:
        if any(unit.subject == subject.key for unit in units):
            diagnosis = examine(choice_of(subject), download=False)
            say_findings(output, diagnosis)
            work = ready(recipe, subject, units, diagnosis, _local(given))
            Sources(given=work.inputs).refuse(work.local.out, REPORT_NAMES)
            if work.prepared is None:
                _check(work, diagnosis, given)
            planned.append((work, diagnosis))
    fetched_works = [_fetched(output, work, diagnosis, given) for work, diagnosis in planned]
    gathered = Gathered(output)
    measure = recipe.measure if given["measure"] is None else given["measure"]
    made: list[Made] = []
    for work, diagnosis in fetched_works:
        if work.prepared is not None:
            work = work.having(run_calibration(output, work.prepared, diagnosis.repaired.view()))
            for note in work.keep(diagnosis, output.say):
                output.say(f"  {note}")
        items = write_and_judge(
            gathered,
            work.items(diagnosis),
            diagnosis,
            threads=given["threads"],
            overwrite=given["overwrite"],
            measure=0 if given["no_verify"] else measure,
            home=work.local.out,
        )
        made.append(note_outcomes(work, items, head=bool(diagnosis.repaired.mtp_layers)))
    refused = finish(gathered, recipe, made, pushing=given["pushing"])
    output.document(gathered.documents)
    raise_unproven(
        [item for each in made for item in each.demanding], allow_unverified=given["allow_unverified"]
    )
    raise_gates(made)
    raise_refused(refused)


def _check_pushes(recipe: Recipe, units: Sequence[Unit], *, token: bool) -> None:
    from qexport.publish.push import check_destinations
    from qexport.recipe.publication import destinations

    check_destinations([each.repo for each in destinations(recipe, units)], token=token)


def _fetched(
    output: Output, work: Ready, headers: Diagnosis, given: dict[str, Any]
) -> tuple[Ready, Diagnosis]:
    """All data at hand, and the matrix of an earlier run; whose files are there has the same one."""
    from qexport.pipeline.model import fetched

    diagnosis = fetched(choice_of(work.subject), headers)
    if work.prepared is not None:
        there = None if given["overwrite"] else work.there(diagnosis)
        if there is None:
            _check(work, diagnosis, given)
        else:
            output.say(f"importance matrix: {work.prepared.label} is there, from the same weights and text")
            work = replace(work.having(there), prepared=None)
    return work, diagnosis


def _check(work: Ready, diagnosis: Diagnosis, given: dict[str, Any]) -> None:
    from qexport.cli._export import check_items

    check_items(
        work.targets,
        diagnosis,
        overwrite=given["overwrite"],
        home=work.local.out,
        beside=work.beside(),
        given=work.inputs,
    )


def _local(given: dict[str, Any]) -> Local:
    from qexport.recipe.run import Local
    from qexport.recipe.targets import Runtimes

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
    )
