"""``qexport.json`` in a folder: the one reader, which believes nothing, and the one writer.

A receipt comes with files from anywhere. It is read up to a size and a depth, never through a link that
leaves the folder (but for a Hub cache's own), and what does not fit is left out with a note. Where a run is
going to write, a file that is no receipt is set aside before the pass, so that the run cannot end on it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qexport.checkpoint.paths import leads_out, read_small
from qexport.errors import InputError
from qexport.onepass.files import replace_file, set_aside, write_problem
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.old import from_schema_1
from qexport.receipt.on_disk import is_there
from qexport.receipt.typed import MAX_BYTES, Unfit, as_json, fit, parse
from qexport.receipt.types import SCHEMA, Artifact, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qexport.receipt.speeds import Bench
    from qexport.receipt.types import Gate


_MOST_NOTES = 8


@dataclass(frozen=True)
class Read:
    """What was found.

    Attributes:
        receipt: empty where there is none, or none that can be used.
        notes: what was left out, and why.
        damaged: why the file is no receipt at all; empty: it is one, or there is none.
    """

    receipt: Receipt = field(default_factory=Receipt)
    notes: tuple[str, ...] = ()
    damaged: str = ""


def read_receipt(folder: Path) -> Read:
    """The receipt in ``folder``.

    Raises:
        InputError: a later qexport has written it.
    """
    path = folder / RECEIPT_NAME
    if not os.path.lexists(path):
        return Read()
    if leads_out(folder, path):
        return Read(damaged="it is a link out of the folder")
    try:
        data = read_small(path, "it", limit=MAX_BYTES)
    except InputError as error:
        return Read(damaged=error.message.rstrip("."))
    return parse_receipt(data)


def parse_receipt(data: bytes) -> Read:
    """A receipt from the file's bytes, of whatever kind they are.

    Raises:
        InputError: a later qexport has written it.
    """
    try:
        value = parse(data)
    except Unfit as error:
        return Read(damaged=str(error))
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(
            f"{RECEIPT_NAME} was written by a later qexport (schema {schema}).",
            hint="Use that version, or another folder.",
        )
    if schema not in (1, SCHEMA) or not isinstance(value.get("artifacts"), list):
        return Read(damaged="it does not hold what a receipt holds")
    entries = value["artifacts"]
    if schema == 1:
        entries = [from_schema_1(entry) if isinstance(entry, dict) else entry for entry in entries]
    notes: list[str] = []
    found = fit(tuple[Artifact, ...], entries, "artifacts", notes)
    shown = [f"{RECEIPT_NAME}: {note}" for note in notes[:_MOST_NOTES]]
    if len(notes) > _MOST_NOTES:
        shown.append(f"{RECEIPT_NAME}: and {len(notes) - _MOST_NOTES} more things left out")
    return Read(Receipt(found), tuple(shown))


def settle(folder: Path, say: Callable[[str], None]) -> None:
    """See, before a pass, that a receipt can be written here after it: what is none is set aside.

    Args:
        say: told what was set aside, and what of the receipt cannot be used.

    Raises:
        InputError: a later qexport has written it.
        EnvironmentProblem: it cannot be renamed.
    """
    read = read_receipt(folder)
    for note in read.notes:
        say(note)
    if read.damaged:
        say(f"{RECEIPT_NAME} in {folder.name or folder} cannot be used: {read.damaged}")
        try:
            set_aside(folder / RECEIPT_NAME, say)
        except OSError as error:
            raise write_problem(error, RECEIPT_NAME) from error


def write_receipt(folder: Path, artifacts: Sequence[Artifact], say: Callable[[str], None]) -> Path:
    """Write the receipt: these artifacts, and those of earlier runs whose files are all still there.

    Speeds that were measured of an artifact stay with it as long as its bytes are the same.

    Args:
        say: told what was set aside, as :func:`settle` does.
    """
    settle(folder, say)
    earlier = read_receipt(folder).receipt.artifacts
    replaced = {file.name for artifact in artifacts for file in artifact.files}
    kept = [
        artifact
        for artifact in earlier
        if not any(file.name in replaced for file in artifact.files)
        and all((folder / file.name).exists() for file in artifact.files)
    ]
    timed = {artifact.files: artifact.bench for artifact in earlier if artifact.bench is not None}
    made = (replace(each, bench=each.bench or timed.get(each.files)) for each in artifacts)
    return _write(folder, Receipt((*kept, *made)))


def note_bench(path: Path, bench: Bench) -> Path | None:
    """Note speeds of the artifact at ``path``, a GGUF file or a folder.

    The receipt is the one in the folder, or just above it. ``None``: there is none that knows the artifact,
    or not with these sizes.
    """
    return _note(path, lambda artifact: replace(artifact, bench=bench))


def note_gates(path: Path, gates: Sequence[Gate]) -> Path | None:
    """Note how a recipe's gates ended for the artifact at ``path``; the receipt as in :func:`note_bench`."""
    return _note(path, lambda artifact: replace(artifact, gates=tuple(gates)))


def _note(path: Path, change: Callable[[Artifact], Artifact]) -> Path | None:
    path = path.absolute()
    for folder in (path.parent,) if path.is_file() else (path, path.parent):
        known = read_receipt(folder).receipt.artifacts
        for at, artifact in enumerate(known):
            if _is_of(artifact, path, folder) and is_there(folder, artifact):
                return _write(folder, Receipt((*known[:at], change(artifact), *known[at + 1 :])))
    return None


def _is_of(artifact: Artifact, path: Path, folder: Path) -> bool:
    files = [folder / file.name for file in artifact.files]
    if path.is_file():
        return path in files
    return not artifact.is_file and all(path in file.parents for file in files)


def receipt_bytes(receipt: Receipt) -> bytes:
    """The file."""
    value = {"schema": SCHEMA, "artifacts": as_json(receipt.artifacts)}
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(folder: Path, receipt: Receipt) -> Path:
    path = folder / RECEIPT_NAME
    replace_file(path, receipt_bytes(receipt))
    return path
