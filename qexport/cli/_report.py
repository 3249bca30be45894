"""Findings, plans and verdicts, in words and as JSON; shared by the commands."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._output import Output
from qexport.cli._own_words import own_words
from qexport.cli._terminal import is_terminal
from qexport.onepass.disk import free_bytes
from qexport.sizes import counted, size_text
from qexport.verification.table import COLUMNS, describe, rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.run.target import Item


def say_findings(output: Output, diagnosis: Diagnosis, *, details: bool = False) -> None:
    """One line for each thing that was found or repaired, errors first; ``details``: whom it breaks, too."""
    output.say(f"{diagnosis.subject.checkpoint.label}: {diagnosis.subject.family.name}")
    for finding in diagnosis.findings:
        output.say(f"  {finding.severity:<8}  {finding.id}: {finding.what}")
        if details:
            for breaks in finding.breaks:
                output.say(f"              breaks {breaks.reader}: {breaks.message}")
            if finding.severity == "error":
                ways = own_words(finding.repair, click.get_current_context().command)
                output.say(f"              ways out: {ways}")


def plan_json(plan: ArtifactPlan) -> dict[str, Any]:
    """A plan as plain data: files with exact sizes, every tensor with its place."""
    return {
        "kind": plan.kind,
        "label": plan.label,
        "bytes": plan.size,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "files": [{"name": f.name, "bytes": f.size, "header_bytes": len(f.header)} for f in plan.files],
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.stored.name,
                "file": plan.files[t.streams[0][0].file].name,
                "offset": t.streams[0][0].offset,
                "bytes": t.nbytes,
                "source": sorted({piece.name for piece in t.source.pieces}),
            }
            for t in plan.tensors
        ],
        "notes": list(plan.notes),
        "details": dict(plan.details),
        "assignment": None if plan.assignment is None else plan.assignment.to_json(),
    }


def show_plans(output: Output, plans: Sequence[ArtifactPlan], out: Path) -> None:
    """The plan (``--dry-run``), with ``-v`` each file and tensor: stdout, or one JSON document."""
    total, free = sum(plan.size for plan in plans), free_bytes(out)
    output.document(
        {
            "out": out.name,
            "bytes": total,
            "free_bytes": free,
            "fits": total <= free,
            "artifacts": [plan_json(plan) for plan in plans],
        }
    )
    if output.as_json:
        return
    for plan in plans:
        output.text(f"{plan.label}: {counted(len(plan.tensors), 'tensor')}, {size_text(plan.size)}")
        if output.verbose:
            for file in plan.files:
                header = f", header {len(file.header)}" if file.header else ""
                output.text(f"  {file.name}  {file.size} bytes{header}")
            for line in _tensor_lines(plan):
                output.text(line, as_is=True)
        for note in plan.notes:
            output.text(f"  note: {note}")
        if plan.assignment is not None and plan.assignment.predicted is not None:
            output.text(f"  predicted: {plan.assignment.predicted}")
    _summary(output, plans)
    verdict = "fits" if total <= free else "DOES NOT FIT"
    output.text(f"{size_text(total)} to write, {size_text(free)} free: {verdict}.")


def _tensor_lines(plan: ArtifactPlan) -> Iterator[str]:
    """Name, shape, type and place of each tensor; in two lines where the terminal has no room for one."""
    found = [
        (
            t.name,
            "x".join(map(str, t.shape)),
            t.stored.name,
            f"{t.streams[0][0].file}:{t.streams[0][0].offset}",
        )
        for t in plan.tensors
    ]
    if not found:  # a matrix, whose numbers are all header
        return
    name, shape, kind, where = (max(map(len, column)) for column in zip(*found, strict=True))
    apart = is_terminal(sys.stdout) and 10 + name + shape + kind + where > get_terminal_size().columns
    for row in found:
        known = f"{row[1]:>{shape}}  {row[2]:>{kind}}  {row[3]:>{where}}"
        yield f"    {row[0]}\n      {known}" if apart else f"    {row[0]:<{name}}  {known}"


def say_plans(output: Output, items: Sequence[Item]) -> None:
    """What is about to be written, and what a user should know about it."""
    total = sum(item.plan.size for item in items)
    names = ", ".join(item.plan.label for item in items)
    folders = ", ".join(dict.fromkeys(str(item.folder) for item in items))
    output.say(f"{counted(len(items), 'artifact')} ({names}), {size_text(total)}, into {folders}")
    for item in items:
        for note in item.plan.notes:
            output.say(f"  {item.plan.label}: {note}")


def show_results(output: Output, results: Sequence[Item], receipts: Sequence[Path]) -> None:
    """What was written, how it ran, and the verdicts."""
    document: dict[str, Any] = {
        "receipt": receipts[0].name,
        "artifacts": [
            {
                "kind": r.plan.kind,
                "label": r.plan.label,
                "folder": r.folder.name,
                "files": [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in r.written],
                "state": r.state.value,
                "verification": None if r.report is None else r.report.to_json(),
            }
            for r in results
        ],
    }
    output.document(document)
    if output.as_json:
        return
    reports = [r.report for r in results if r.report is not None]
    for report in reports:
        if not report.passed:
            for line in describe(report):
                output.say(line)
    if reports:
        output.table(COLUMNS, rows(reports))
    unproven = [r for r in results if r.report is None]
    if unproven:
        _summary(output, [r.plan for r in unproven])
    if any(not r.attached for r in unproven):
        output.text("Not run: verification was not asked for.")
    for receipt in receipts:
        output.text(f"Receipt: {receipt}")


def _summary(output: Output, plans: Sequence[ArtifactPlan]) -> None:
    rows = [
        [
            plan.files[0].name + (f" (+{len(plan.files) - 1})" if len(plan.files) > 1 else ""),
            size_text(plan.size),
            f"{plan.bits_per_weight:.2f}",
            ", ".join(f"{count} {kind}" for kind, count in plan.details.get("tensor_types", {}).items()),
        ]
        for plan in plans
    ]
    output.table(("file", "size", "bits/weight", "tensors"), rows)
