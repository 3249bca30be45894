"""Where artifacts came from, in lines for a card: source, MTP head, calibration, tool, and repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.receipt.safe_text import cell, code, hub_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.types import Artifact


def provenance(artifacts: Sequence[Artifact]) -> list[str]:
    """One line for each fact; a fact that all artifacts share is said once."""
    lines: list[str] = []
    for fact in (_source, _head, _matrix, _tool):
        lines += dict.fromkeys(filter(None, (fact(artifact) for artifact in artifacts)))
    return lines


def repairs(artifacts: Sequence[Artifact]) -> list[str]:
    """What the doctor repaired in the source, each once."""
    found = (finding for artifact in artifacts for finding in artifact.repairs)
    return list(dict.fromkeys(f"{cell(each.what)} ({code(each.id)})" for each in found))


def _source(artifact: Artifact) -> str:
    found = artifact.source
    if not found.label:
        return ""
    weighs = f", {found.weight_bytes / 1e9:.3g} GB of weights" if found.weight_bytes >= 10**8 else ""
    if found.hub_id and found.revision:
        return f"Source: {hub_link(found.hub_id)} at commit {code(found.revision)}{weighs}"
    return f"Source: {code(found.label)}, a local checkpoint{weighs}"


def _head(artifact: Artifact) -> str:
    found = artifact.source
    if found.head == "grafted":
        return (
            f"MTP head: grafted from {code(found.base)}, bit for bit, since the source had lost its own. "
            "It was not trained further on this model, which is why acceptance is measured."
        )
    return {"own": "MTP head: the source's own", "dropped": "MTP head: dropped on request"}.get(
        found.head, ""
    )


def _matrix(artifact: Artifact) -> str:
    matrix = artifact.matrix
    if matrix is None:
        return ""
    sets = ", ".join(map(code, matrix.datasets))
    of = f", from {sets}" if sets else ""
    many = f", {matrix.tokens:,} tokens" if matrix.tokens is not None else ""
    return f"Importance matrix: {code(matrix.file)}{of}{many}"


def _tool(artifact: Artifact) -> str:
    return f"Written by qexport {cell(artifact.tool)}" if artifact.tool else ""
