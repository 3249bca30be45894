"""What a receipt says of the artifacts of one model: source and findings are the same for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.export.receipt import artifact_entry, source_entry
from qexport.publish.front_matter import source_card

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from qexport.doctor.diagnose import Diagnosis
    from qexport.export.sink import WrittenFile
    from qexport.formats.plan import ArtifactPlan
    from qexport.verify.report import Report

__all__ = ["artifact_entries"]


def artifact_entries(
    diagnosis: Diagnosis,
    artifacts: Iterable[tuple[ArtifactPlan, Sequence[WrittenFile], Report | None]],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One entry for each artifact: its plan, its files and its verdict (``None``: not verified)."""
    source = source_entry(diagnosis.subject.checkpoint)
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
        )
        for plan, written, report in artifacts
    ]
