"""Where artifacts came from, in lines for a card: source, MTP head, calibration, tool, and repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.publish.artifacts import mapping
from qexport.publish.front_matter import hub_id
from qexport.publish.table import cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.publish.artifacts import Artifact

__all__ = ["provenance", "repairs"]


def provenance(artifacts: Sequence[Artifact]) -> list[str]:
    """One line for each fact; a fact that all artifacts share is said once."""
    lines: list[str] = []
    for fact in (_source, _head, _matrix, _tool):
        lines += dict.fromkeys(filter(None, (fact(artifact) for artifact in artifacts)))
    return lines


def repairs(artifacts: Sequence[Artifact]) -> list[str]:
    """What the doctor repaired in the source, each once."""
    found: dict[str, None] = {}
    for artifact in artifacts:
        for finding in _list(artifact.entry.get("findings")):
            value = mapping(finding)
            if value.get("severity") == "repaired" and value.get("what"):
                found[f"{cell(value['what'])} (`{cell(value.get('id'))}`)"] = None
    return list(found)


def _source(artifact: Artifact) -> str:
    source = mapping(artifact.entry.get("source"))
    if not source.get("label"):
        return ""
    repo, revision = hub_id(artifact), source.get("revision")
    size = sum(int(mapping(file).get("bytes") or 0) for file in mapping(source.get("files")).values())
    weighs = f", {size / 1e9:.3g} GB of weights" if size >= 10**8 else ""
    if repo and revision:
        return f"Source: [{repo}](https://huggingface.co/{repo}) at commit `{cell(revision)}`{weighs}"
    return f"Source: `{cell(source['label'])}`, a local checkpoint{weighs}"


def _head(artifact: Artifact) -> str:
    origin = str(mapping(artifact.entry.get("source")).get("mtp") or "none")
    if origin == "own":
        return "MTP head: the source's own"
    if origin.startswith("grafted from "):
        base = origin.removeprefix("grafted from ")
        return (
            f"MTP head: grafted from `{cell(base)}`, bit for bit, since the source had lost its own. It was "
            "not trained further on this model, which is why acceptance is measured."
        )
    return "MTP head: dropped on request" if origin == "dropped" else ""


def _matrix(artifact: Artifact) -> str:
    matrix = mapping(mapping(artifact.entry.get("options")).get("imatrix"))
    if not matrix.get("file"):
        return ""
    facts = mapping(matrix.get("calibration"))
    sets = ", ".join(f"`{cell(name)}`" for name in _list(matrix.get("datasets")))
    of = f", from {sets}" if sets else ""
    tokens = facts.get("tokens")
    many = f", {tokens:,} tokens" if isinstance(tokens, int) else ""
    return f"Importance matrix: `{cell(matrix['file'])}`{of}{many}"


def _tool(artifact: Artifact) -> str:
    version = artifact.entry.get("qexport")
    return f"Written by qexport {cell(version)}" if version else ""


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
