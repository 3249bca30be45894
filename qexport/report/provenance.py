"""Where the artifacts came from, in plain words; what all of them share is said once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.report.report import Fact
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.publish.origin import Origin

__all__ = ["facts"]


def facts(origins: Sequence[Origin]) -> tuple[Fact, ...]:
    """Source, MTP head, calibration, tool."""
    return tuple(
        Fact(what, text)
        for what, of in _FACTS
        for text in dict.fromkeys(filter(None, (of(found) for found in origins)))
    )


def _source(found: Origin) -> str:
    if not found.label:
        return ""
    weighs = f", {size_text(found.weight_bytes)} of weights" if found.weight_bytes else ""
    if found.repo and found.revision:
        return f"{found.repo} on the Hugging Face Hub, commit {found.revision}{weighs}"
    return f"{found.label}, a local checkpoint{weighs}"


def _head(found: Origin) -> str:
    if found.head == "grafted":
        return (
            f"grafted from {found.base}, bit for bit, since the source had lost its own. It was not trained "
            "further on this model, which is why acceptance is measured."
        )
    return {"own": "the source's own", "dropped": "dropped on request"}.get(found.head, "none")


def _calibration(found: Origin) -> str:
    if found.matrix is None:
        return ""
    of = f", from {', '.join(found.matrix.datasets)}" if found.matrix.datasets else ""
    many = "" if of or found.matrix.tokens is None else f", {found.matrix.tokens:,} tokens"
    return f"importance matrix {found.matrix.file}{of}{many}"


def _tool(found: Origin) -> str:
    return f"qexport {found.tool}" if found.tool else ""


_FACTS: tuple[tuple[str, Callable[[Origin], str]], ...] = (
    ("Source", _source),
    ("MTP head", _head),
    ("Calibration", _calibration),
    ("Written by", _tool),
)
