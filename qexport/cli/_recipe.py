"""What the commands that take a recipe share: their options, and how jobs are weighed and shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import SIZE, together
from qexport.cli._output import Output
from qexport.errors import EnvironmentProblem, InputError
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.recipe import Recipe
    from qexport.recipe.select import Unit
    from qexport.run.jobs import Job, MachineLimits
    from qexport.run.weigh import Burden


class _Count(click.ParamType[int]):
    """``27B``, ``350M``: a number of weights."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(
            r"(\d{1,15}(?:\.\d{1,15})?)([KMBT])", str(value).strip(), re.IGNORECASE | re.ASCII
        )
        if match is None:
            self.fail(f"{value!r} is not a number of weights such as 27B or 350M", param, ctx)
        return int(float(match[1]) * {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[match[2].upper()])


class _Recipe(click.ParamType[Path]):
    """A recipe's file, or the name of one that comes with qexport."""

    name = "recipe"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from qexport.recipe.named import find_recipe

        return value if isinstance(value, Path) else find_recipe(str(value))


RECIPE = _Recipe()
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    envvar="QEXPORT_SET",
    help="Another value for a key of the recipe, e.g. source.revision=v2 or artifacts.mlx.mlx.bits=4. "
    "Repeatable; QEXPORT_SET holds several, with spaces between.",
)


recipe_options = together(
    click.option(
        "--only",
        multiple=True,
        metavar="NAME[:TYPE],...",
        help="Only these artifacts, or types of them; model/NAME and compare/NAME where there are both.",
    ),
    SET,
    click.argument("recipe_path", metavar="RECIPE", type=RECIPE),
)
"""RECIPE, ``--set`` and ``--only``."""


limit_options = together(
    click.option(
        "--params",
        metavar="COUNT",
        type=_Count(),
        help="How many weights the model has, e.g. 27B: sizes are then guessed from that, and nothing is "
        "asked of the Hub.",
    ),
    click.option(
        "--cores",
        type=click.IntRange(1, 4096),
        default=4,
        show_default=True,
        help="Processors of a machine, for the time estimate.",
    ),
    click.option("--max-jobs", type=click.IntRange(1, 256), default=256, help="The most jobs."),
    click.option("--max-memory", type=SIZE, metavar="SIZE", help="Memory of a machine."),
    click.option("--max-disk", type=SIZE, metavar="SIZE", help="Disk of a machine, for source and results."),
)
"""What one machine has."""


def burdens_of(output: Output, recipe: Recipe, units: Sequence[Unit], params: int | None) -> list[Burden]:
    """What the units weigh: from headers, or guessed from ``params``.

    Raises:
        EnvironmentProblem: the Hub cannot be reached; the hint names ``--params``.
    """
    from qexport.run.model import examine
    from qexport.run.weigh import guess, weigh

    found: list[Burden] = []
    for subject in recipe.subjects:
        mine = [unit for unit in units if unit.subject == subject.key]
        if not mine:
            continue
        if params is not None:
            found.append(guess(recipe, subject, params, mine))
            continue
        try:
            diagnosis = examine(subject.choice, download=False)
        except (EnvironmentProblem, InputError) as error:
            error.hint = f"{error.hint or ''} Or give --params 27B: sizes are then guessed.".strip()
            raise
        output.say(f"{diagnosis.subject.checkpoint.label}: sizes from its headers")
        found.append(weigh(recipe, subject, diagnosis, mine))
    return found


def jobs_of(
    output: Output,
    recipe: Recipe,
    units: Sequence[Unit],
    given: dict[str, Any],
    limits: MachineLimits | None = None,
) -> tuple[Job, ...]:
    """The units as jobs for machines of ``limits``; without, for those that ``limit_options`` describe."""
    from qexport.run.jobs import MachineLimits, plan_jobs

    limits = limits or MachineLimits(*(given[key] for key in ("max_disk", "max_memory", "max_jobs", "cores")))
    return plan_jobs(recipe, burdens_of(output, recipe, units, given["params"]), limits)


def job_json(recipe: Recipe, job: Job, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A job as an entry of a matrix: its name, the words for ``--only``, the command, and what it needs.

    ``folders`` are what it makes below ``--out``, with the repository that the recipe has for each;
    ``verify`` says whether the recipe wants any of them run.
    """
    from qexport.recipe.named import shown
    from qexport.recipe.select import select

    assert recipe.path is not None
    words = ["qexport", "run", shown(recipe.path), "--only", ",".join(job.only)]
    words += [word for given in overrides for word in ("--set", given)]
    folders: dict[str, str | None] = {}
    verified = False
    for unit in select(recipe, job.only):
        subject, artifact = recipe.subject(unit.subject), recipe.artifact(unit.artifact)
        folders[recipe.folder(subject, artifact)] = recipe.repo(subject, artifact)
        verified |= artifact.verify is not None and artifact.unverified == "refuse"
    return {
        "name": job.name,
        "only": ",".join(job.only),
        "command": shlex.join(words),
        "folders": [{"folder": folder, "repo": repo} for folder, repo in folders.items()],
        "output_bytes": job.output,
        "disk_bytes": job.disk,
        "memory_bytes": job.memory,
        "seconds": round(job.seconds),
        "time": human_time(job.seconds),
        "exact": job.exact,
        "verify": verified,
    }


def show_jobs(output: Output, jobs: Sequence[Job]) -> None:
    """A table for people: what each job needs, and how long it may take."""
    rows = [
        [
            job.name,
            " ".join(job.only),
            size_text(job.output),
            size_text(job.disk),
            size_text(job.memory),
            f"~ {human_time(job.seconds)}",
        ]
        for job in jobs
    ]
    output.table(("job", "only", "writes", "disk", "memory", "time"), rows)
    if jobs:
        exact = "from plans" if all(job.exact for job in jobs) else "guessed"
        output.text(f"Sizes {exact}; times are estimates, without downloads and verification.")


def human_time(seconds: float) -> str:
    """``95 -> '2 min'``: estimates deserve no more digits."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
