"""What a run left: every unit of a recipe against the receipts, file by file.

For whoever gets the files from another machine: a CI job before it publishes, a person after a download.
Hashes are computed anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from qexport.export.receipt import read_receipt
from qexport.publish.safe_text import cell
from qexport.verify.report import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qexport.recipe.recipe import Recipe
    from qexport.recipe.select import Unit

__all__ = ["Arrived", "State", "look", "markdown"]


class State(StrEnum):
    """What is to be said of a unit."""

    PASSED = "passed"
    FAILED = "failed verification"
    UNPROVEN = "not verified"
    DAMAGED = "damaged"
    MISSING = "missing"


@dataclass(frozen=True)
class Arrived:
    """One unit: its folder, its bytes, and (``why``) the file that is wrong."""

    unit: Unit
    folder: str
    nbytes: int
    state: State
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
        drafter = f"{folder}-MTP"
        if (out / drafter).is_dir():
            found.append(_look(unit, out, drafter, "mlx-drafter"))
    return found


def _look(unit: Unit, out: Path, folder: str, kind: str) -> Arrived:
    entry = _entry(read_receipt(out / folder), kind, unit.type)
    if entry is None:
        return Arrived(unit, folder, 0, State.MISSING, "no receipt names it")
    nbytes = sum(int(file["bytes"]) for file in entry["files"])
    wrong = _wrong(out / folder, entry["files"])
    state = State.DAMAGED if wrong else _verdict(entry.get("verification"))
    return Arrived(unit, folder, nbytes, state, wrong)


def markdown(arrived: Sequence[Arrived]) -> str:
    """A table for step summaries and issues."""
    lines = ["| artifact | folder | GB | state |", "|---|---|---|---|"]
    for each in arrived:
        why = f" ({cell(each.why)})" if each.why else ""
        figures = f"{cell(each.folder)} | {each.nbytes / 1e9:.2f}"
        lines.append(f"| {cell(each.unit)} | {figures} | {each.state}{why} |")
    return "\n".join(lines)


def _entry(receipt: dict[str, Any] | None, kind: str, type_name: str) -> dict[str, Any] | None:
    for entry in (receipt or {}).get("artifacts", []):
        if entry.get("kind") == kind and (not type_name or entry.get("label") == type_name):
            return dict(entry)
    return None


def _verdict(verification: dict[str, Any] | None) -> State:
    """What no runtime could run has not failed, nor passed."""
    if verification is None:
        return State.UNPROVEN
    if verification.get("passed") is True:
        return State.PASSED
    failed = any(finding.get("status") == Status.FAIL for finding in verification.get("findings", ()))
    return State.FAILED if failed else State.UNPROVEN


def _wrong(folder: Path, files: Iterable[dict[str, Any]]) -> str:
    for file in files:
        path = folder / file["name"]
        if not path.is_file():
            return f"{file['name']} is not there"
        if path.stat().st_size != file["bytes"]:
            return f"{file['name']} has {path.stat().st_size} bytes, not {file['bytes']}"
        with path.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != file["sha256"]:
                return f"{file['name']} has another hash"
    return ""
