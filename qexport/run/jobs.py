"""Jobs for a recipe: as few as disk and memory allow, since what runs together shares one read.

Units are placed largest first into the first job that has room, those that want an importance matrix before
the rest, so that it is collected as few times as possible. Different models never share a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem
from qexport.recipe.select import words_for
from qexport.run.rates import calibration_seconds, pass_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.recipe.recipe import Recipe
    from qexport.run.weigh import Burden, Weighed


MOST_JOBS = 256
"""Of one matrix on GitHub: https://docs.github.com/en/actions/reference/limits"""
_GB = 10**9


@dataclass(frozen=True)
class MachineLimits:
    """What one machine has; ``None`` is enough of it. ``cores`` only for the time estimate."""

    disk: int | None = None
    memory: int | None = None
    jobs: int = MOST_JOBS
    cores: int = 4


@dataclass(frozen=True)
class Job:
    """What one machine is to do.

    Attributes:
        name: unique, fit for file names.
        only: words for ``--only``.
        output: bytes that it writes.
        disk: those, the source where it has to be downloaded, and what calibration may spill.
        memory: bytes that it needs.
        seconds: an estimate, without download and verification.
        exact: the sizes come from plans.
        download: bytes of the source that it has to fetch.
    """

    name: str
    only: tuple[str, ...]
    output: int
    disk: int
    memory: int
    seconds: float
    exact: bool
    download: int = 0


def plan_jobs(recipe: Recipe, burdens: Iterable[Burden], limits: MachineLimits) -> tuple[Job, ...]:
    """The jobs for all units that were weighed.

    Raises:
        UsageProblem: a unit alone is beyond the limits, or there would be too many jobs.
    """
    jobs: list[Job] = []
    for burden in burdens:
        groups = _groups(burden, limits)
        stem = recipe.subject(burden.subject).name
        for number, group in enumerate(groups, 1):
            name = f"{stem}-{number}of{len(groups)}" if len(groups) > 1 else stem
            jobs.append(_job(recipe, burden, group, name, limits))
    check_count(len(jobs), limits)
    return tuple(jobs)


def check_count(needed: int, limits: MachineLimits) -> None:
    """Raise UsageProblem where there are too many jobs."""
    if needed > limits.jobs:
        raise UsageProblem(
            f"{needed} jobs are needed, and {limits.jobs} are allowed",
            hint="Allow more disk for each, more jobs, or take fewer artifacts.",
        )


def _groups(burden: Burden, limits: MachineLimits) -> list[list[Weighed]]:
    groups: list[list[Weighed]] = []
    for unit in sorted(burden.units, key=lambda each: (not each.weighted, -each.nbytes)):
        alone = [unit]
        if not _fits(burden, alone, limits):
            raise UsageProblem(
                _beyond(burden, unit, limits), hint="Raise the limit, or leave it out (--only)."
            )
        for group in groups:
            if _fits(burden, [*group, unit], limits):
                group.append(unit)
                break
        else:
            groups.append(alone)
    order = {each.unit: place for place, each in enumerate(burden.units)}
    return [sorted(group, key=lambda each: order[each.unit]) for group in groups]


def _fits(burden: Burden, units: Sequence[Weighed], limits: MachineLimits) -> bool:
    disk = limits.disk is None or _disk(burden, units) <= limits.disk
    return disk and (limits.memory is None or burden.memory(units) <= limits.memory)


def _disk(burden: Burden, units: Sequence[Weighed]) -> int:
    spilled = burden.states if any(each.weighted for each in units) else 0
    return burden.source + spilled + _output(units)


def _output(units: Sequence[Weighed]) -> int:
    beside = {each.unit.artifact: each.beside for each in units}
    return sum(each.nbytes for each in units) + sum(beside.values())


def _beyond(burden: Burden, unit: Weighed, limits: MachineLimits) -> str:
    needed = _disk(burden, [unit])
    if limits.disk is not None and needed > limits.disk:
        return (
            f"{unit.unit.short} needs {needed / _GB:.1f} GB of disk, {burden.source / _GB:.1f} GB of them "
            f"for the source, and {limits.disk / _GB:.1f} GB are allowed"
        )
    return (
        f"{unit.unit.short} needs {burden.memory([unit]) / _GB:.1f} GB of memory, "
        f"and {(limits.memory or 0) / _GB:.1f} GB are allowed"
    )


def _job(recipe: Recipe, burden: Burden, units: Sequence[Weighed], name: str, limits: MachineLimits) -> Job:
    output = _output(units)
    seconds = pass_seconds(sum(each.core_seconds for each in units), output, limits.cores)
    if any(each.weighted for each in units):
        seconds += calibration_seconds(burden.calibration, 1, limits.cores)
    return Job(
        name=name,
        only=words_for(recipe, [each.unit for each in units]),
        output=output,
        disk=_disk(burden, units),
        memory=burden.memory(units),
        seconds=seconds,
        exact=burden.exact,
        download=burden.source,
    )
