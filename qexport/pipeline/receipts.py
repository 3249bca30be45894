"""What a receipt says of the artifacts of one model: source and findings are the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.export.receipt import artifact_entry, read_receipt, source_entry
from qexport.export.sink import WrittenFile
from qexport.families.roles import Block
from qexport.publish.front_matter import source_card
from qexport.verify.report import Check, Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan

__all__ = ["Finished", "artifact_entries", "entry_of", "measures_of"]


def measures_of(report: Report) -> dict[str, Any]:
    """The figures people compare artifacts by; what was not measured is not there.

    ``kld`` (nats, mean and tails), ``same_top1``, ``perplexity_ratio``, ``acceptance`` of the MTP head by its
    own trunk and ``source_acceptance``, ``tok_s`` and ``mtp_tok_s`` of the runtime.
    """
    found: dict[str, Any] = {}
    divergence = report.finding(Check.DIVERGENCE)
    if divergence is not None and "mean" in divergence.data:
        data = divergence.data
        tails = ("mean", "median", "p90", "p95", "p99", "p99_9", "max")
        found["kld"] = {name: data[name] for name in tails if name in data}
        found["same_top1"] = data["same_top"]
        found["positions"] = data["positions"]
        found["perplexity_ratio"] = data.get("perplexity_ratio")
    head = report.finding(Check.MTP_HEAD)
    if head is not None and "acceptance" in head.data:
        found["acceptance"] = head.data["acceptance"]
        found["source_acceptance"] = (head.data.get("source") or {}).get("acceptance")
    if report.tok_s:
        found["tok_s"] = round(report.tok_s, 2)
    if report.mtp_tok_s:
        found["mtp_tok_s"] = round(report.mtp_tok_s, 2)
    return found


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
    source["vision"] = any(tensor.block is Block.VISION for tensor in diagnosis.repaired.view())
    source["mtp"] = diagnosis.repaired.mtp_origin
    source["card"] = source_card(diagnosis.repaired.files.get("README.md"))
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
            measures=None if report is None else measures_of(report),
        )
        for plan, written, report in artifacts
    ]
