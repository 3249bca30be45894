"""The receipt, ``qexport.json``: what was made from what, how, and whether it was proven.

It is written when all files are under their final names, and again with the verdicts. It holds no host paths.
A folder may be filled by several runs, so everything is said per artifact; those of earlier runs stay as long
as their files are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.export.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from qexport.checkpoint.tensors import Checkpoint
    from qexport.export.sink import WrittenFile
    from qexport.formats.plan import ArtifactPlan

__all__ = [
    "RECEIPT_NAME",
    "add_measure",
    "artifact_entry",
    "read_receipt",
    "source_entry",
    "write_receipt",
]

RECEIPT_NAME = "qexport.json"
_SCHEMA = 1
_ONE_FILE = ("gguf", "imatrix")
_LIBRARIES = ("torch", "gguf", "xllamacpp", "transformers", "safetensors", "numba", "tokenizers")


def source_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where the weights came from: the label, and for every weight file its size and a hash of the layout.

    The hash covers names, dtypes, shapes and offsets, not the weights: reading those twice would double the
    time of an export.
    """
    layout: dict[str, Any] = {}
    for tensor in checkpoint.tensors.values():
        entry = layout.setdefault(tensor.file, {"tensors": 0, "bytes": 0, "hash": hashlib.sha256()})
        entry["tensors"] += 1
        entry["bytes"] += tensor.nbytes
        entry["hash"].update(repr((tensor.name, tensor.dtype, tensor.shape, tensor.start)).encode())
    files = {
        name: {"tensors": e["tensors"], "bytes": e["bytes"], "layout_sha256": e["hash"].hexdigest()}
        for name, e in layout.items()
    }
    revision = getattr(checkpoint, "revision", None)
    return {"label": checkpoint.label, "revision": revision, "files": files}


def artifact_entry(
    plan: ArtifactPlan,
    written: Sequence[WrittenFile],
    *,
    source: Mapping[str, Any],
    findings: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    verification: Mapping[str, Any] | None,
    fingerprint: str | None = None,
    measures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One artifact: its files with hashes, where it came from, and the verdict (``None``: not verified).

    ``fingerprint`` says what its bytes follow from, so that they are not made again; ``measures`` are figures
    by which artifacts are compared.
    """
    return {
        "kind": plan.kind,
        "label": plan.label,
        "files": [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in written],
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "details": dict(plan.details),
        "notes": list(plan.notes),
        "verified": None if verification is None else bool(verification["passed"]),
        "verification": verification,
        "measures": None if measures is None else dict(measures),
        "source": source,
        "options": options,
        "findings": list(findings),
        "fingerprint": fingerprint,
        "qexport": __version__,
        "libraries": _versions(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_receipt(folder: Path, artifacts: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``qexport.json`` beside the artifacts (beside its final name first, then renamed).

    What :func:`add_measure` added to an artifact stays as long as its bytes are the same.
    """
    kept = _earlier(folder, {file["name"] for artifact in artifacts for file in artifact["files"]})
    added = _added(folder)
    every = [*kept, *(_with_added(artifact, added) for artifact in artifacts)]
    return _write(folder, {"schema": _SCHEMA, "artifacts": every})


def add_measure(path: Path, name: str, value: Mapping[str, Any]) -> Path | None:
    """Note a figure beside the artifact at ``path``, a GGUF file or a folder, as ``measures[name]``.

    The receipt is the one in the folder, or just above it. ``None``: there is none that knows the artifact,
    or not with these sizes.
    """

    def add(entry: dict[str, Any]) -> None:
        entry["measures"] = {**(entry.get("measures") or {}), name: dict(value)}
        entry["added"] = sorted({*(entry.get("added") or ()), name})

    return _note(path, add)


def note_gates(path: Path, gates: Sequence[Mapping[str, Any]]) -> Path | None:
    """Note how a recipe's gates ended for the artifact at ``path``; the receipt as in :func:`add_measure`."""

    def add(entry: dict[str, Any]) -> None:
        entry["gates"] = [dict(gate) for gate in gates]

    return _note(path, add)


def _note(path: Path, add: Callable[[dict[str, Any]], None]) -> Path | None:
    """Let ``add`` change the entry of the artifact at ``path``, in the receipt that knows it."""
    path = path.absolute()
    for folder in (path.parent,) if path.is_file() else (path, path.parent):
        receipt = read_receipt(folder)
        for entry in receipt.get("artifacts", []) if receipt is not None else []:
            if _is_of(entry, path, folder) and _same_sizes(folder, entry):
                add(entry)
                return _write(folder, receipt or {})
    return None


def _is_of(entry: Mapping[str, Any], path: Path, folder: Path) -> bool:
    files = [folder / file["name"] for file in entry["files"]]
    if path.is_file():
        return path in files
    return entry.get("kind") not in _ONE_FILE and all(path in file.parents for file in files)


def _added(folder: Path) -> dict[str, dict[str, Any]]:
    """Figures that were added later, by the hash of the artifact's first file."""
    receipt = read_receipt(folder) or {}
    return {
        entry["files"][0]["sha256"]: {name: entry["measures"][name] for name in entry["added"]}
        for entry in receipt.get("artifacts", [])
        if entry.get("added")
    }


def _with_added(artifact: Mapping[str, Any], added: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    figures = added.get(artifact["files"][0]["sha256"]) if artifact["files"] else None
    if not figures:
        return artifact
    measures = {**figures, **(artifact.get("measures") or {})}
    return {**artifact, "measures": measures, "added": sorted(figures)}


def _same_sizes(folder: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return all((folder / file["name"]).stat().st_size == file["bytes"] for file in entry["files"])
    except OSError:
        return False


def _write(folder: Path, receipt: Mapping[str, Any]) -> Path:
    path = folder / RECEIPT_NAME
    replace_file(path, (json.dumps(receipt, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """The receipt in ``folder``, or ``None`` where there is none that can be read."""
    try:
        value = json.loads((folder / RECEIPT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == _SCHEMA else None


def _earlier(folder: Path, replaced: set[str]) -> list[dict[str, Any]]:
    earlier = read_receipt(folder)
    if earlier is None:
        return []
    kept = []
    for artifact in earlier.get("artifacts", []):
        names = [file["name"] for file in artifact["files"]]
        if not replaced & set(names) and all((folder / name).exists() for name in names):
            kept.append(artifact)
    return kept


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions
