"""What a receipt says of the artifacts of one model: source and findings are the same for all of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.families.roles import Block
from qexport.headtune.folder import RECEIPT, tuned_in
from qexport.receipt.on_disk import is_there
from qexport.receipt.source_card import source_card
from qexport.receipt.store import read_receipt
from qexport.receipt.types import (
    Artifact,
    File,
    Forecast,
    MatrixFile,
    Possible,
    Source,
    TunedHead,
    WeightFile,
)
from qexport.run.about import about_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.assign.assignment import Assignment
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.onepass.sink import WrittenFile
    from qexport.receipt.types import AgainstPlain
    from qexport.receipt.verification import Verification


_LIBRARIES = ("torch", "gguf", "xllamacpp", "transformers", "safetensors", "numba", "tokenizers")


def entry_of(folder: Path, fingerprint: str) -> Artifact | None:
    """The artifact in ``folder`` that was made from exactly this, if all its files are there."""
    known = read_receipt(folder).receipt.artifacts
    made = (artifact for artifact in known if artifact.fingerprint == fingerprint)
    return next((artifact for artifact in made if is_there(folder, artifact)), None)


def plain_entry_of(folder: Path, fingerprint: str) -> Artifact | None:
    """The plain artifact in ``folder`` that was written because the best, made from exactly this, was no
    better."""
    known = read_receipt(folder).receipt.artifacts
    made = (each for each in known if each.against_plain and each.against_plain.fingerprint == fingerprint)
    return next((each for each in made if is_there(folder, each)), None)


def source_of(diagnosis: Diagnosis) -> Source:
    """Where the weights came from: for every weight file its size and a hash of the layout.

    The hash covers names, dtypes, shapes and offsets, not the weights: reading those twice would double the
    time of an export.
    """
    checkpoint, repaired = diagnosis.subject.checkpoint, diagnosis.repaired
    files: dict[str, tuple[int, int, Any]] = {}
    for tensor in checkpoint.tensors.values():
        count, size, digest = files.get(tensor.file) or (0, 0, hashlib.sha256())
        digest.update(repr((tensor.name, tensor.dtype, tensor.shape, tensor.start)).encode())
        files[tensor.file] = (count + 1, size + tensor.nbytes, digest)
    return Source(
        label=checkpoint.label,
        revision=getattr(checkpoint, "revision", None),
        files={name: WeightFile(count, size, h.hexdigest()) for name, (count, size, h) in files.items()},
        mtp=repaired.mtp_origin,
        vision=any(tensor.block is Block.VISION for tensor in repaired.view()),
        tower=repaired.vision_origin,
        card=source_card(repaired.files.get("README.md")),
        tuned=_tuned(diagnosis),
        about=about_of(diagnosis),
    )


def _tuned(diagnosis: Diagnosis) -> TunedHead | None:
    """What a head's own receipt says, where it is one that was tuned."""
    base = diagnosis.subject.base
    grafted = diagnosis.repaired.mtp_origin.startswith("grafted")
    if base is None or not grafted or RECEIPT not in base.files:
        return None
    return tuned_in(base.read_file(RECEIPT))


def entry_for(
    diagnosis: Diagnosis,
    plan: ArtifactPlan,
    written: Sequence[WrittenFile],
    report: Verification | None,
    options: Mapping[str, Any],
    fingerprint: str | None = None,
    against: AgainstPlain | None = None,
    asked: str = "",
) -> Artifact:
    """What a receipt says of one artifact: its plan, its files and its verdict (``None``: not asked for).

    Args:
        fingerprint: says what its bytes follow from, so that they are not made again.
        against: how the best of its size did beside the plain type, where that was asked for.
        asked: what the recipe asked for, as a hash.
    """
    return Artifact(
        kind=plan.kind,
        label=plan.label,
        files=tuple(File(f.name, f.size, f.sha256) for f in written),
        bits_per_weight=round(plan.bits_per_weight, 4),
        details=dict(plan.details),
        parts=parts_of(diagnosis, plan),
        notes=tuple(plan.notes),
        verification=report,
        against_plain=against,
        source=source_of(diagnosis),
        options=dict(options),
        matrix=_matrix(options),
        predicted=forecast(plan.assignment),
        model_name=options.get("model_name"),
        mtp_layouts=tuple(plan.details.get("mtp_layouts", ())),
        findings=tuple(diagnosis.findings),
        fingerprint=fingerprint,
        asked=asked,
        tool=__version__,
        libraries=dict(_versions()),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _matrix(options: Mapping[str, Any]) -> MatrixFile | None:
    """GGUF options call it imatrix, folder formats importance."""
    for given in (options.get("imatrix"), options.get("importance")):
        if isinstance(given, Mapping):
            tokens = (given["calibration"] or {}).get("tokens")
            return MatrixFile(given["file"], given["sha256"], tuple(given["datasets"]), tokens)
    return None


def forecast(assignment: Assignment | None) -> Forecast | None:
    """What is predicted of types; and, where they were chosen by that, the types themselves."""
    if assignment is None or (found := assignment.predicted) is None:
        return None
    types = assignment.types if found.aim else {}
    curve = tuple(Possible(*point) for point in found.curve)
    return Forecast(found.kld, found.draft_kld, found.aim, types, found.key, curve)


@cache
def _versions() -> dict[str, str]:
    """Each is a file of metadata to be parsed: once, not for every artifact."""
    versions: dict[str, str] = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions
