"""Where an artifact came from, as its receipt says: source, MTP head, calibration, tool, repairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.publish.artifacts import mapping
from qexport.publish.front_matter import hub_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.publish.artifacts import Artifact

__all__ = ["Matrix", "Origin", "origin", "repaired"]

_GRAFTED = "grafted from "


@dataclass(frozen=True)
class Matrix:
    """The importance matrix: its file, what it was made from, and tokens (``None``: not said)."""

    file: str
    datasets: tuple[str, ...]
    tokens: int | None


@dataclass(frozen=True)
class Origin:
    """Empty strings and ``None`` for what a receipt does not say.

    Attributes:
        label: of the source.
        repo, revision: on the Hub; ``None`` for a local checkpoint.
        weight_bytes: of all weight files of the source.
        head: ``own``, ``grafted``, ``dropped`` or empty: where the MTP head is from.
        base: what the head was grafted from.
        tool: qexport's version.
    """

    label: str
    repo: str | None
    revision: str | None
    weight_bytes: int
    head: str
    base: str
    matrix: Matrix | None
    tool: str


def origin(artifact: Artifact) -> Origin:
    """Read defensively: anything may be missing."""
    source = mapping(artifact.entry.get("source"))
    files = mapping(source.get("files")).values()
    mtp = str(source.get("mtp") or "none")
    grafted = mtp.startswith(_GRAFTED)
    return Origin(
        label=str(source.get("label") or ""),
        repo=hub_id(artifact),
        revision=str(source["revision"]) if source.get("revision") else None,
        weight_bytes=sum(_whole(mapping(file).get("bytes")) or 0 for file in files),
        head="grafted" if grafted else mtp if mtp in ("own", "dropped") else "",
        base=mtp.removeprefix(_GRAFTED) if grafted else "",
        matrix=_matrix(artifact),
        tool=str(artifact.entry.get("qexport") or ""),
    )


def repaired(artifact: Artifact) -> list[tuple[str, str]]:
    """What the doctor repaired in the source: what it was, and the quirk's id."""
    found = (mapping(finding) for finding in _list(artifact.entry.get("findings")))
    return [
        (str(value["what"]), str(value.get("id")))
        for value in found
        if value.get("severity") == "repaired" and value.get("what")
    ]


def _matrix(artifact: Artifact) -> Matrix | None:
    # GGUF options call it imatrix, folder formats importance.
    options = mapping(artifact.entry.get("options"))
    matrix = mapping(options.get("imatrix")) or mapping(options.get("importance"))
    if not matrix.get("file"):
        return None
    tokens = mapping(matrix.get("calibration")).get("tokens")
    sets = tuple(str(name) for name in _list(matrix.get("datasets")))
    return Matrix(str(matrix["file"]), sets, _whole(tokens))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
