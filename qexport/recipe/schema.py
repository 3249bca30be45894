"""What a recipe may hold, as one model, and what it says of values that do not fit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model

from qexport.errors import closest
from qexport.pipeline.measure import MEASURED_TOKENS
from qexport.recipe.artifact import Entry, Verify
from qexport.recipe.fields import Part, Whole, fields_of, list_of
from qexport.recipe.gates import Gates
from qexport.recipe.problems import Path, Problems
from qexport.recipe.recipe import Calibration, Mtp, Publication, Source


class _File(Part):
    """A recipe: what is exported from what, how it is proven, and where it goes.

    Attributes:
        source: the model.
        compare: a base that gets the same artifacts, with the same settings and text.
        mtp: what becomes of the MTP head.
        calibration: without it nothing is weighted by importance.
        artifacts: what is to be written, all from one read.
        verify: how all artifacts are proven; false: not at all.
        measure: held-out tokens on which artifacts are compared with the source; 0: not.
        gates: limits for every artifact.
        publish: where folders go on the Hub.
    """

    source: Source
    compare: Source | None = None
    mtp: Mtp = Mtp()
    calibration: Calibration | None = None
    measure: Annotated[Whole, Field(ge=0, le=1 << 30)] = MEASURED_TOKENS
    gates: Gates = Gates()
    publish: Publication | None = None


_Entries: Any = Annotated[tuple[Entry, ...], list_of("artifacts"), Field(min_length=1)]
File: Any = create_model(
    "Recipe", __base__=_File, __doc__=_File.__doc__, verify=(Verify, None), artifacts=(_Entries, ...)
)
"""The whole file, but for what spans its parts."""
_MISSING = {
    "source": ": which model? (source: {model: org/name})",
    "artifacts": ": a list of what is to be written",
    "types": ": a list such as [Q4_K_M, Q8_0]",
}


def note(error: ValidationError, problems: Problems) -> list[Path]:
    """Note everything that pydantic found; returns where, in the tree's own paths."""
    paths: list[Path] = []
    for each in error.errors(include_url=False):
        path = tuple(step for step in each["loc"] if not str(step).startswith("<"))
        paths.append(path)
        problems.at(path, _said(each["type"], path, each), key=each["type"] == "extra_forbidden")
    return paths


def _said(kind: str, path: Path, error: Any) -> str:
    last = str(path[-1]) if path else ""
    limits = error.get("ctx") or {}
    if kind in ("missing", "too_short"):
        return f"{last!r} is missing{_MISSING.get(last, '')}"
    if kind == "extra_forbidden":
        return f"unknown key {last!r}{closest(last, fields_of(File, path[:-1]))}"
    if kind in ("model_type", "dict_type"):
        keys = ", ".join(fields_of(File, path))
        return "a mapping is expected here" + (f", with keys such as {keys}" if keys else "")
    if kind == "greater_than_equal":
        return f"{last} must " + (f"be {limits['ge']} at least" if limits["ge"] else "not be negative")
    if kind == "less_than_equal":
        return f"{last} must be " + (f"{limits['le']} at most" if limits["le"] != 1 else "a share, 1 at most")
    return str(error["msg"])
