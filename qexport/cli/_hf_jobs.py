"""``qexport run --on hf-jobs``: its options, and submitting or printing the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import together
from qexport.cli._recipe import plan_all, show_jobs
from qexport.run.hf_jobs import HfJobs

if TYPE_CHECKING:
    from qexport.cli._output import Output


_DEFAULTS = HfJobs()


hf_job_options = together(
    click.option(
        "--hf-install",
        metavar="SPEC",
        help="What pip installs in a job, such as 'qexport[all] @ git+https://github.com/you/qexport'.  "
        "[default: this version, where another machine can have it]",
    ),
    click.option(
        "--hf-image",
        metavar="IMAGE",
        default=_DEFAULTS.image,
        show_default=True,
        help="Docker image of a job, with Python 3.11 or newer.",
    ),
    click.option(
        "--hf-secret",
        "hf_secrets",
        multiple=True,
        metavar="NAME",
        default=_DEFAULTS.secrets,
        show_default=True,
        help="Environment variable that a job gets as a secret; its value is read here when a job is "
        "submitted.",
    ),
    click.option(
        "--hf-namespace", metavar="ORG", help="Whose jobs they are.  [default: the token's account]"
    ),
    click.option(
        "--hf-timeout",
        metavar="TIME",
        default=_DEFAULTS.timeout,
        show_default=True,
        help="After which a job is stopped: 90m, 6h.",
    ),
    click.option(
        "--hf-flavor",
        metavar="NAME",
        default=_DEFAULTS.flavor,
        show_default=True,
        help="Hardware of a job; `hf jobs hardware` lists it.",
    ),
    click.option("--hf-bucket", metavar="ORG/NAME", help="Bucket that jobs write to, a folder for each."),
)
"""What ``--on hf-jobs`` needs to know."""


def send(output: Output, given: dict[str, Any], *, dry_run: bool) -> None:
    """Submit the recipes' jobs, or (``dry_run``) print the calls."""
    from qexport.recipe.load import read_recipe_text
    from qexport.run.hf_jobs import calls_for, submit

    options = HfJobs(
        flavor=given["hf_flavor"],
        image=given["hf_image"],
        timeout=given["hf_timeout"],
        namespace=given["hf_namespace"],
        secrets=tuple(given["hf_secrets"]),
        bucket=given["hf_bucket"],
        install=given["hf_install"],
    )
    planned = plan_all(output, given)
    calls = []
    for chosen, jobs in planned.of:
        assert chosen.recipe.path is not None
        text = read_recipe_text(chosen.recipe.path)
        calls += calls_for(chosen.recipe, text, jobs, options, given["overrides"])
    if dry_run:
        output.document([call.to_json() for call in calls])
        show_jobs(output, planned)
        for call in calls:
            output.text(f"\nrun_job for {call.job.name}:")
            for name, value in call.to_json()["run_job"].items():
                output.text(f"  {name} = {value!r}")
    else:
        done = []
        for call in calls:
            done.append(submit(call))
            output.say(f"{done[-1].name}: {done[-1].url}")
        output.document([{"name": job.name, "id": job.id, "url": job.url} for job in done])
        for job in done:
            output.text(f"{job.id}  {job.name}")
        output.text("Follow one with `hf jobs logs ID`.")
    if (error := planned.problem()) is not None:
        raise error
