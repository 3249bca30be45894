"""``qexport run``: everything in recipes, from one read of each model; here, or on Hugging Face Jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._hf_jobs import hf_job_options, send
from qexport.cli._options import (
    ALLOW_UNVERIFIED,
    DEVICE,
    JSON,
    LLAMA_SERVER,
    NO_VERIFY,
    OUT,
    OVERWRITE,
    THREADS,
    Whole,
)
from qexport.cli._output import Output
from qexport.cli._recipe import limit_options, plan_all, recipe_options, show_jobs
from qexport.cli._several import run_all
from qexport.evidence.options import StreamOptions

if TYPE_CHECKING:
    from qexport.run.local import Local


@click.command("run")
@recipe_options
@OUT
@NO_VERIFY
@LLAMA_SERVER
@click.option(
    "--runtime-python",
    "pythons",
    multiple=True,
    metavar="RUNTIME=PATH",
    help="The Python that has a runtime which the recipe asks for, e.g. vllm=~/vllm/bin/python.",
)
@ALLOW_UNVERIFIED
@click.option("--measure", type=Whole(0, 1 << 30), metavar="TOKENS", help="Instead of the recipe's number.")
@DEVICE
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
@click.option(
    "--fail-fast", is_flag=True, help="Of several recipes: run none after one that ended with an error."
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

    Several recipes run one after the other, each in a folder of its name below --out. One that ends with an
    error holds up no other; the exit code is that of the gravest.

    \b
    Examples:
      qexport run demo -o demo-out --push-dry-run
      qexport run qwen3.6-27b --dry-run
      qexport run qwen3.6-27b --only gguf:Q4_K_M,mlx --set source.model=./merged
      qexport run recipes/*.yaml -o exports --if-changed --push
      qexport run qwen3.6-27b --on hf-jobs --hf-bucket you/exports --max-disk 800G --dry-run
    """
    output = Output(as_json=as_json)
    if where == "hf-jobs":
        send(output, given, dry_run=dry_run)
    elif dry_run:
        _rehearse(output, given)
    else:
        run_all(output, given, _local(given))


def _rehearse(output: Output, given: dict[str, Any]) -> None:
    from qexport.onepass.execute import default_threads
    from qexport.run.jobs import MachineLimits

    limits = MachineLimits(None, None, given["max_jobs"], given["threads"] or default_threads())
    planned = plan_all(output, given, limits)
    entries = planned.entries(given["overrides"])
    output.document(entries)
    show_jobs(output, planned)
    if entries and len(given["recipe_paths"]) == 1:  # each of several has a folder of its own name
        folders = dict.fromkeys(each["folder"] for entry in entries for each in entry["folders"])
        output.text(f"Into {given['out'] or 'this folder'}: {', '.join(folders)}")
    if (error := planned.problem()) is not None:
        raise error


def _local(given: dict[str, Any]) -> Local:
    from qexport.run.local import Local, Runtimes

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
