"""Where artifacts came from, in lines for a card: source, MTP head, calibration, tool, and repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.publish.origin import origin, repaired
from qexport.publish.safe_text import cell, code, hub_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.publish.artifacts import Artifact
    from qexport.publish.origin import Origin

__all__ = ["provenance", "repairs"]


def provenance(artifacts: Sequence[Artifact]) -> list[str]:
    """One line for each fact; a fact that all artifacts share is said once."""
    origins = [origin(artifact) for artifact in artifacts]
    lines: list[str] = []
    for fact in (_source, _head, _matrix, _tool):
        lines += dict.fromkeys(filter(None, (fact(found) for found in origins)))
    return lines


def repairs(artifacts: Sequence[Artifact]) -> list[str]:
    """What the doctor repaired in the source, each once."""
    found = (repair for artifact in artifacts for repair in repaired(artifact))
    return list(dict.fromkeys(f"{cell(what)} ({code(quirk)})" for what, quirk in found))


def _source(found: Origin) -> str:
    if not found.label:
        return ""
    weighs = f", {found.weight_bytes / 1e9:.3g} GB of weights" if found.weight_bytes >= 10**8 else ""
    if found.repo and found.revision:
        return f"Source: {hub_link(found.repo)} at commit {code(found.revision)}{weighs}"
    return f"Source: {code(found.label)}, a local checkpoint{weighs}"


def _head(found: Origin) -> str:
    if found.head == "grafted":
        return (
            f"MTP head: grafted from {code(found.base)}, bit for bit, since the source had lost its own. "
            "It was not trained further on this model, which is why acceptance is measured."
        )
    return {"own": "MTP head: the source's own", "dropped": "MTP head: dropped on request"}.get(
        found.head, ""
    )


def _matrix(found: Origin) -> str:
    if found.matrix is None:
        return ""
    sets = ", ".join(map(code, found.matrix.datasets))
    of = f", from {sets}" if sets else ""
    many = f", {found.matrix.tokens:,} tokens" if found.matrix.tokens is not None else ""
    return f"Importance matrix: {code(found.matrix.file)}{of}{many}"


def _tool(found: Origin) -> str:
    return f"Written by qexport {cell(found.tool)}" if found.tool else ""
