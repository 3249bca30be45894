"""What a receipt says of the artifacts of one model: source and findings are the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.export.receipt import artifact_entry, read_receipt, source_entry
from qexport.export.sink import WrittenFile
from qexport.verify.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan

__all__ = ["Finished", "artifact_entries", "entry_of"]


@dataclass(frozen=True)
class Finished:
    """What a receipt says of an artifact that is there."""

    files: tuple[WrittenFile, ...]
    report: Report | None
    details: Mapping[str, Any] = field(default_factory=dict)


def entry_of(folder: Path, fingerprint: str) -> Finished | None:
    """The artifact in ``folder`` that was made from exactly this, if all its files are there."""
    receipt = read_receipt(folder)
    for entry in receipt.get("artifacts", []) if receipt is not None else []:
        if entry.get("fingerprint") != fingerprint:
            continue
        files = tuple(WrittenFile(f["name"], f["bytes"], f["sha256"]) for f in entry["files"])
        if all(_is_there(folder / file.name, file.size) for file in files):
            return Finished(files, _report(entry), entry.get("details") or {})
    return None


def _report(entry: Mapping[str, Any]) -> Report | None:
    try:
        verdict = entry.get("verification")
        return None if verdict is None else Report.from_json(verdict)
    except (KeyError, ValueError, TypeError):
        return None  # another version's: verify again


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def artifact_entries(
    diagnosis: Diagnosis,
    artifacts: Iterable[tuple[ArtifactPlan, Sequence[WrittenFile], Report | None]],
    options: Mapping[str, Any],
    *,
    fingerprint: str | None = None,
) -> list[dict[str, Any]]:
    """One entry for each artifact: its plan, its files and its verdict (``None``: not verified)."""
    source = source_entry(diagnosis.subject.checkpoint)
    source["mtp"] = diagnosis.repaired.mtp_origin
    findings = [finding.to_json() for finding in diagnosis.findings]
    return [
        artifact_entry(
            plan,
            written,
            source=source,
            findings=findings,
            options=options,
            verification=None if report is None else report.to_json(),
            fingerprint=fingerprint,
        )
        for plan, written, report in artifacts
    ]
