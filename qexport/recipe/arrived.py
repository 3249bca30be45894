"""What a run left: every unit of a recipe against the receipts, file by file.

For whoever gets the files from another machine: a CI job before it publishes, a person after a download.
Hashes are computed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qexport.formats.registry import FORMATS
from qexport.receipt.on_disk import sha256_of
from qexport.receipt.safe_text import cell
from qexport.receipt.store import read_receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qexport.receipt.state import State
    from qexport.receipt.types import Artifact, File
    from qexport.recipe.recipe import Recipe
    from qexport.recipe.select import Unit


class Gone(StrEnum):
    """Why there is nothing to be in a state."""

    DAMAGED = "damaged"
    MISSING = "missing"


@dataclass(frozen=True)
class Arrived:
    """One unit: its folder, its bytes, and (``why``) the file that is wrong."""

    unit: Unit
    folder: str
    nbytes: int
    state: State | Gone
    why: str = ""


def look(recipe: Recipe, units: Iterable[Unit], out: Path) -> list[Arrived]:
    """Every unit, in order, and the drafters that lie beside MLX folders.

    A unit that the recipe does not verify may be unproven; the caller decides.
    """
    found: list[Arrived] = []
    for unit in units:
        artifact = recipe.artifact(unit.artifact)
        folder = recipe.folder(recipe.subject(unit.subject), artifact)
        found.append(_look(unit, out, folder, artifact.kind))
        for kind, ending in FORMATS[artifact.kind].beside.items():
            if (out / f"{folder}{ending}").is_dir():
                found.append(_look(unit, out, f"{folder}{ending}", kind))
    return found


def _look(unit: Unit, out: Path, folder: str, kind: str) -> Arrived:
    found = next(
        (a for a in read_receipt(out / folder).receipt.artifacts if _is_of(a, kind, unit.type)), None
    )
    if found is None:
        return Arrived(unit, folder, 0, Gone.MISSING, "no receipt names it")
    wrong = _wrong(out / folder, found.files)
    return Arrived(unit, folder, found.size, Gone.DAMAGED if wrong else found.state, wrong)


def _is_of(artifact: Artifact, kind: str, type_name: str) -> bool:
    return artifact.kind == kind and (not type_name or artifact.label == type_name)


def markdown(arrived: Sequence[Arrived]) -> str:
    """A table for step summaries and issues."""
    lines = ["| artifact | folder | GB | state |", "|---|---|---|---|"]
    for each in arrived:
        why = f" ({cell(each.why)})" if each.why else ""
        figures = f"{cell(each.folder)} | {each.nbytes / 1e9:.2f}"
        lines.append(f"| {cell(each.unit)} | {figures} | {each.state}{why} |")
    return "\n".join(lines)


def _wrong(folder: Path, files: Iterable[File]) -> str:
    for file in files:
        path = folder / file.name
        if not path.is_file():
            return f"{file.name} is not there"
        if path.stat().st_size != file.size:
            return f"{file.name} has {path.stat().st_size} bytes, not {file.size}"
        if sha256_of(path) != file.sha256:
            return f"{file.name} has another hash"
    return ""
