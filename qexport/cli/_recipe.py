"""What the commands that take a recipe share: their options, and how jobs are weighed and shown."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import SIZE, Whole, together
from qexport.cli._output import Output
from qexport.errors import EnvironmentProblem, InputError, QexportError, SeveralProblems, some
from qexport.sizes import counted, human_time, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.several import Chosen, Refused
    from qexport.run.changed import HubState
    from qexport.run.jobs import Job, MachineLimits
    from qexport.run.model import Openings
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
        "--if-changed",
        is_flag=True,
        help="Leave out what the recipe's repositories hold already: made from the same commits, by this "
        "version, as the recipe asks for it, and proven.",
    ),
    click.option(
        "--only",
        multiple=True,
        metavar="NAME[:TYPE],...",
        help="Only these artifacts, or types of them; model/NAME and compare/NAME where there are both.",
    ),
    SET,
    click.argument("recipe_paths", metavar="RECIPE...", type=RECIPE, nargs=-1, required=True),
)
"""RECIPE..., ``--set``, ``--only`` and ``--if-changed``."""


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
        type=Whole(1, 4096),
        default=4,
        show_default=True,
        help="Processors of a machine, for the time estimate.",
    ),
    click.option("--max-jobs", type=Whole(1, 256), default=256, help="The most jobs."),
    click.option("--max-memory", type=SIZE, metavar="SIZE", help="Memory of a machine."),
    click.option("--max-disk", type=SIZE, metavar="SIZE", help="Disk of a machine, for source and results."),
)
"""What one machine has."""


@dataclass
class Planned:
    """Jobs of one recipe or of many, and what they have in common.

    Attributes:
        of: each recipe with its jobs.
        downloads: bytes by what is downloaded, each once.
        openings: models and bases that were opened for it.
        refused: recipes of which nothing could be planned.
        unchanged: units that were left out because the Hub has them.
    """

    openings: Openings
    of: list[tuple[Chosen, tuple[Job, ...]]] = field(default_factory=list)
    downloads: dict[object, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    unchanged: int = 0

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [job for _, jobs in self.of for job in jobs]

    def entries(self, overrides: Sequence[str]) -> list[dict[str, Any]]:
        """As entries of a matrix; ``together`` are the jobs of one recipe, which is published as a whole."""
        return [
            {**job_json(chosen, job, overrides), "together": " ".join(each.name for each in jobs)}
            for chosen, jobs in self.of
            for job in jobs
        ]

    def problem(self) -> QexportError | None:
        """One error for all recipes that were refused."""
        return problem_of(self.refused)


def problem_of(refused: Sequence[Refused]) -> QexportError | None:
    """One error for recipes that ended with one."""
    if not refused:
        return None
    return SeveralProblems(
        f"{len(refused)} of the recipes ended with an error: {some([each.name for each in refused])}",
        [each.error for each in refused],
        hint="Each is said above.",
    )


def plan_all(output: Output, given: dict[str, Any], limits: MachineLimits | None = None) -> Planned:
    """The jobs of every recipe that was named; what cannot be planned is said, and holds up no other.

    Raises:
        QexportError: there is one recipe, and it cannot be planned; there would be too many jobs.
    """
    from qexport.recipe.several import Refused, choose
    from qexport.run.jobs import MachineLimits, check_count
    from qexport.run.model import Openings

    limits = limits or MachineLimits(*(given[key] for key in ("max_disk", "max_memory", "max_jobs", "cores")))
    paths = given["recipe_paths"]
    chosen, refused = choose(paths, given["overrides"], given["only"])
    planned = Planned(Openings(), refused=list(refused))
    state = hub_state(planned.openings) if given["if_changed"] else None
    for each in chosen:
        try:
            wanted = each if state is None else only_changed(output, state, each)
            planned.unchanged += len(each.units) - len(wanted.units)
            jobs = _jobs(output, planned, wanted, given, limits)
        except QexportError as error:
            planned.refused.append(Refused(each.name, error))
            continue
        if len(paths) > 1:  # names are unique within a recipe
            jobs = tuple(replace(job, name=f"{each.name}.{job.name}") for job in jobs)
        planned.of.append((wanted, jobs))
    if len(paths) == 1 and planned.refused:
        raise planned.refused[0].error
    for one in planned.refused:
        output.say(f"{one.name}: {one.error.message}")
    check_count(len(planned.jobs), limits)
    return planned


def hub_state(openings: Openings) -> HubState:
    """What ``--if-changed`` compares with."""
    from qexport.run.changed import HubState

    return HubState(openings)


def only_changed(output: Output, state: HubState, chosen: Chosen) -> Chosen:
    """Without what the Hub has already; says of each unit why it is made, or that it is there."""
    standings = state.standing(chosen.recipe, chosen.units)
    for each in standings:
        output.say(f"{chosen.name}: {each.unit.short}: {each.why or f'unchanged in {each.repo}'}")
    return replace(chosen, units=tuple(each.unit for each in standings if each.changed))


def _jobs(
    output: Output, planned: Planned, chosen: Chosen, given: dict[str, Any], limits: MachineLimits
) -> tuple[Job, ...]:
    from qexport.run.jobs import plan_jobs

    burdens = _burdens(output, planned.openings, chosen, given["params"])
    for burden in burdens:
        choice = chosen.recipe.subject(burden.subject).choice
        planned.downloads[(choice.model, choice.revision)] = burden.source
    return plan_jobs(chosen.recipe, burdens, limits)


def _burdens(output: Output, openings: Openings, chosen: Chosen, params: int | None) -> list[Burden]:
    """What the units weigh: from headers, or guessed from ``params``.

    Raises:
        EnvironmentProblem: the Hub cannot be reached; the hint names ``--params``.
    """
    from qexport.run.model import examine
    from qexport.run.weigh import guess, weigh

    found: list[Burden] = []
    recipe = chosen.recipe
    for subject in recipe.subjects:
        mine = [unit for unit in chosen.units if unit.subject == subject.key]
        if not mine:
            continue
        if params is not None:
            found.append(guess(recipe, subject, params, mine))
            continue
        try:
            diagnosis = examine(subject.choice, download=False, opened=openings)
        except (EnvironmentProblem, InputError) as error:
            error.hint = f"{error.hint or ''} Or give --params 27B: sizes are then guessed.".strip()
            raise
        output.say(f"{diagnosis.subject.checkpoint.label}: sizes from its headers")
        found.append(weigh(recipe, subject, diagnosis, mine))
    return found


def job_json(chosen: Chosen, job: Job, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A job as an entry of a matrix: its name, recipe and words for ``--only``, the command, what it needs.

    ``folders`` are what it makes below ``--out``, with the repository that the recipe has for each;
    ``verify`` says whether the recipe wants any of them run.
    """
    from qexport.recipe.select import select

    recipe = chosen.recipe
    words = ["qexport", "run", chosen.words, "--only", ",".join(job.only)]
    words += [word for given in overrides for word in ("--set", given)]
    folders: dict[str, str | None] = {}
    verified = False
    for unit in select(recipe, job.only):
        subject, artifact = recipe.subject(unit.subject), recipe.artifact(unit.artifact)
        folders[recipe.folder(subject, artifact)] = recipe.repo(subject, artifact)
        verified |= artifact.verify is not None and artifact.unverified == "refuse"
    return {
        "name": job.name,
        "recipe": chosen.words,
        "only": ",".join(job.only),
        "command": shlex.join(words),
        "folders": [{"folder": folder, "repo": repo} for folder, repo in folders.items()],
        "output_bytes": job.output,
        "disk_bytes": job.disk,
        "memory_bytes": job.memory,
        "download_bytes": job.download,
        "seconds": round(job.seconds),
        "time": human_time(job.seconds),
        "exact": job.exact,
        "verify": verified,
    }


def show_jobs(output: Output, planned: Planned) -> None:
    """A table for people: what each job needs, how long it may take, and what many have in common."""
    jobs = planned.jobs
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
    if planned.unchanged:
        output.text(f"{planned.unchanged} left out: the Hub has them, and nothing has changed.")
    if len(planned.of) + len(planned.refused) > 1:
        _show_shared(output, planned)


def in_markdown(planned: Planned) -> str:
    """The jobs as Markdown, and what is not among them."""
    from qexport.receipt.safe_text import cell

    lines = ["| job | artifacts | GB | disk, GB | time, about |", "|---|---|---|---|---|"]
    for job in planned.jobs:
        sizes = f"{job.output / 1e9:.2f} | {job.disk / 1e9:.2f}"
        lines.append(
            f"| {cell(job.name)} | {cell(' '.join(job.only))} | {sizes} | {human_time(job.seconds)} |"
        )
    lines += [f"\n{cell(each.name)}: {cell(each.error.message)}" for each in planned.refused]
    if planned.unchanged:
        lines.append(f"\n{planned.unchanged} left out: unchanged on the Hub.")
    return "\n".join(lines) + "\n"


def _show_shared(output: Output, planned: Planned) -> None:
    openings, fetched = planned.openings, sum(job.download for job in planned.jobs)
    looked = "1 model" if openings.opened == 1 else f"{openings.opened} models and bases"
    output.text(
        f"{counted(len(planned.of), 'recipe')}, {counted(len(planned.jobs), 'job')}; {looked} looked at for "
        f"{counted(openings.asked, 'use')}."
    )
    if fetched:
        once = sum(planned.downloads.values())
        output.text(f"Jobs download {size_text(fetched)}; each model once would be {size_text(once)}.")
