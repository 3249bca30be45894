"""From receipts to a :class:`Report`. Nothing but receipts is read: no weights, no runtimes."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.publish.artifacts import Proof, mapping, read_artifacts
from qexport.publish.figures import measure, measures, number
from qexport.publish.origin import origin, repaired
from qexport.report.provenance import facts
from qexport.report.report import Gate, Model, Report
from qexport.report.row import File, Kld, Row
from qexport.verify.speeds import Bench

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qexport.publish.artifacts import Artifact

__all__ = ["gather", "row_of"]

_ORDER = ("gguf", "mlx", "fp8", "nvfp4", "merged")


def gather(folders: Sequence[Path], *, gates: Iterable[Gate] = (), compare: Sequence[Path] = ()) -> Report:
    """Everything that receipts in or just above the folders know.

    Args:
        folders: of the model that the report is about. Where they hold artifacts of several sources, the
            first source is that model and the others are compared with it.
        compare: folders of the model to compare with.

    Raises:
        InputError: a folder has no receipt, or one that cannot be used, or no artifact at all is known.
    """
    models = [*_models(folders), *_models(compare)]
    if not models:
        raise InputError("There is nothing to report on: these receipts know importance matrices only.")
    found = [artifact for _, artifacts in models for artifact, _ in artifacts]
    newest = max((artifact.written or 0.0 for artifact in found), default=0.0)
    return Report(
        models=tuple(_model(title, artifacts) for title, artifacts in models),
        gates=tuple(gates),
        written=datetime.fromtimestamp(newest, UTC).date().isoformat() if newest else "",
    )


_Found = list[tuple["Artifact", str]]


def _models(folders: Sequence[Path]) -> list[tuple[str, _Found]]:
    """Artifacts with the name of their folder, by source; each entry once, whichever folder named it."""
    seen: dict[tuple[str, ...], None] = {}
    sources: dict[str, _Found] = {}
    for folder in folders:
        name = folder.absolute().name
        for artifact in read_artifacts(folder):
            mark = (artifact.kind, artifact.label, *(file.sha256 for file in artifact.files))
            if artifact.proof is Proof.NOT_NEEDED or mark in seen:
                continue
            seen[mark] = None
            found = origin(artifact)
            sources.setdefault(found.repo or found.label, []).append((artifact, name))
    return [(_title(label, found), found) for label, found in sources.items()]


def _title(label: str, found: _Found) -> str:
    if not found or origin(found[0][0]).repo:
        return label
    # A folder is called "model" or "merged" as often as not; GGUF files carry the model's own name.
    names = (mapping(artifact.entry.get("options")).get("model_name") for artifact, _ in found)
    return next((str(name) for name in names if name), label) or "a model"


def _model(title: str, found: _Found) -> Model:
    rows = sorted((row_of(artifact, folder) for artifact, folder in found), key=_place)
    artifacts = [artifact for artifact, _ in found]
    wrong = (f"{what} ({quirk})" for artifact in artifacts for what, quirk in repaired(artifact))
    return Model(title, tuple(rows), facts([origin(a) for a in artifacts]), tuple(dict.fromkeys(wrong)))


def _place(row: Row) -> tuple[int, bool, int, str]:
    at = _ORDER.index(row.format) if row.format in _ORDER else len(_ORDER)
    return at, row.drafter, row.size, row.label


def row_of(artifact: Artifact, folder: str = "") -> Row:
    """The row of one artifact; ``folder`` names it where it is not in a folder of its own."""
    figures = {} if artifact.is_drafter else measures(artifact)
    positions = number(figures.get("positions"))
    runtime = mapping(artifact.verification.get("runtime"))
    seen = None if artifact.is_drafter else number(artifact.verification.get("acceptance"))

    def of(name: str) -> float | None:
        return measure(artifact, name) if figures else None

    return Row(
        kind=artifact.kind,
        label=artifact.label,
        name=_name(artifact, folder),
        size=artifact.size,
        files=tuple(File(file.name, file.size, file.sha256) for file in artifact.files),
        proof=_proof(artifact),
        verdict=artifact.verdict,
        bits_per_weight=number(artifact.entry.get("bits_per_weight")),
        drafter=artifact.is_drafter,
        has_mtp=artifact.has_mtp,
        runtime=" ".join(str(runtime[key]) for key in ("name", "version") if runtime.get(key)),
        kld=_kld(figures.get("kld")),
        same_top1=of("same_top1"),
        perplexity_ratio=of("perplexity_ratio"),
        positions=None if positions is None else int(positions),
        acceptance=of("acceptance"),
        source_acceptance=of("source_acceptance"),
        runtime_acceptance=seen,
        tok_s=of("tok_s"),
        mtp_tok_s=of("mtp_tok_s"),
        bench=_bench(figures.get("bench")),
        settings=mapping(artifact.entry.get("options")),
    )


def _proof(artifact: Artifact) -> str:
    # What no runtime could run has not passed, nor has anything been found wrong with it.
    unrun = artifact.proof is Proof.FAILED and artifact.verdict == Proof.MISSING.value
    return Proof.MISSING.value if unrun else artifact.proof.value


def _name(artifact: Artifact, folder: str) -> str:
    first = artifact.files[0].name
    if artifact.kind == "gguf":
        return first
    parent = min((file.name.rpartition("/")[0] for file in artifact.files), key=len)
    return f"{parent or folder or artifact.label}/"


def _kld(value: object) -> Kld | None:
    found = mapping(value) or {"mean": value}
    known = {each.name: number(found.get(each.name)) for each in fields(Kld)}
    return Kld(**known) if known["mean"] is not None else None


def _bench(value: object) -> Bench | None:
    try:
        return Bench.from_json(mapping(value))
    except (KeyError, TypeError, ValueError):
        return None  # none, or another version's
