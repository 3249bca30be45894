"""What a folder holds, by its receipts.

A receipt is read defensively: fields that later versions add are used where they are there, and what must be
there (files with sizes and hashes) is checked, because those hashes become checksums that others trust. A
folder may hold receipts in subfolders, or be a subfolder itself whose receipt lies one level up; names are
always made relative to the folder that is pushed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError, UsageProblem
from qexport.export.receipt import RECEIPT_NAME, read_receipt
from qexport.publish.names import is_made_here
from qexport.publish.safe_text import LABEL, without_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Artifact",
    "ArtifactFile",
    "Proof",
    "check_labels",
    "mapping",
    "parse_entry",
    "read_artifacts",
    "select",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")
# No model: there is nothing in it that a runtime could run.
_NOT_RUN = frozenset(("imatrix",))
# Written without the vision tower, whatever the source has.
_TEXT_ALONE = frozenset(("gguf", "mlx", "mlx-drafter", "imatrix"))
# Where an MLX folder has its head in itself; by default that is a folder of its own.
_INSIDE = ("embedded", "mtplx", "vllm-mlx")


class Proof(StrEnum):
    """What verification says of an artifact."""

    PASSED = "passed"
    FAILED = "failed"
    MISSING = "not verified"
    NOT_NEEDED = "nothing to run"


@dataclass(frozen=True)
class ArtifactFile:
    """A file: its name relative to the pushed folder (with ``/``), bytes, and SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """One entry of a receipt; ``entry`` is all of it, with the names that ``files`` has."""

    kind: str
    label: str
    files: tuple[ArtifactFile, ...]
    entry: Mapping[str, Any]

    @property
    def proof(self) -> Proof:
        """Whether it has been run, and how that ended."""
        if self.kind in _NOT_RUN:
            return Proof.NOT_NEEDED
        verification = self.verification
        if not verification:
            return Proof.MISSING
        return Proof.PASSED if verification.get("passed") is True and not self.broken_gates else Proof.FAILED

    @property
    def broken_gates(self) -> tuple[str, ...]:
        """Limits of the recipe that it does not keep, such as ``max_mean_kld``."""
        gates = self.entry.get("gates")
        listed = [mapping(gate) for gate in gates] if isinstance(gates, list) else []
        return tuple(str(gate.get("gate")) for gate in listed if gate.get("passed") is not True)

    @property
    def verdict(self) -> str:
        """The report's own words, such as ``fail: agreement``."""
        words = str(self.verification.get("verdict") or self.proof.value)
        return words if not self.broken_gates else f"{words}; gate: {', '.join(self.broken_gates)}"

    @property
    def verification(self) -> Mapping[str, Any]:
        """The report, empty where there is none."""
        return mapping(self.entry.get("verification"))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def written(self) -> float | None:
        """When the receipt was made, in seconds since 1970; ``None`` where it does not say."""
        try:
            moment = datetime.fromisoformat(str(self.entry.get("written")))
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    @property
    def has_mtp(self) -> bool:
        """Whether an MTP head is inside, as far as the receipt says."""
        if self.kind == "mlx":
            layouts = mapping(self.entry.get("details")).get("mtp_layouts")
            return isinstance(layouts, list) and not set(_INSIDE).isdisjoint(map(str, layouts))
        origin = str(mapping(self.entry.get("source")).get("mtp") or "none")
        return origin not in ("none", "dropped") and self.kind not in _NOT_RUN

    @property
    def sees(self) -> bool:
        """Whether it can take an image: of an earlier version's receipt only the kind tells."""
        source = mapping(self.entry.get("source"))
        return self.kind not in _TEXT_ALONE and source.get("vision") is not False

    @property
    def is_drafter(self) -> bool:
        """A head in a folder of its own, which another artifact is run with."""
        return "draft" in self.kind or bool(mapping(self.entry.get("details")).get("drafter"))


def mapping(value: object) -> Mapping[str, Any]:
    """``value`` where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def parse_entry(entry: object, where: str) -> Artifact:
    """An entry of a receipt as a value, without cards and the like, which are written anew.

    Args:
        where: what to call the receipt in messages.

    Raises:
        InputError: files, sizes or hashes are not what a receipt holds.
    """
    value = mapping(entry)
    files = []
    listed = value.get("files")
    for file in listed if isinstance(listed, list) else []:
        found = mapping(file)
        name, size, sha256 = found.get("name"), found.get("bytes"), found.get("sha256")
        if not isinstance(name, str) or not isinstance(size, int) or not isinstance(sha256, str):
            raise _broken(where, "a file has no name, size or hash")
        if not _SHA256.fullmatch(sha256) or size < 0:
            raise _broken(where, f"{name!r} has no SHA-256 or no size")
        if not _is_plain(name):
            raise _broken(where, f"{name!r} is not a name inside the folder")
        if not is_made_here(name):
            files.append(ArtifactFile(name, size, sha256))
    kind, label = value.get("kind"), value.get("label")
    if not files or not isinstance(kind, str) or not isinstance(label, str):
        raise _broken(where, "an entry has no kind, label or files")
    return _with_files(Artifact(kind, label, tuple(files), value), files)


def read_artifacts(folder: Path) -> tuple[Artifact, ...]:
    """Every artifact that receipts in or just above ``folder`` know.

    Raises:
        InputError: there is no receipt, or one that cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", hint="Give the folder that an export wrote.")
    artifacts: list[Artifact] = []
    for path in sorted(folder.rglob(RECEIPT_NAME)):
        inner = path.parent.relative_to(folder).as_posix()
        if not any(part.startswith(".") for part in path.parent.relative_to(folder).parts):
            prefix = "" if inner == "." else f"{inner}/"
            artifacts += _entries(path.parent, prefix.__add__)
    if not artifacts:
        own = f"{folder.absolute().name}/"
        above = _entries(folder.absolute().parent, lambda name: name)
        artifacts = [
            _renamed(a, lambda name: name.removeprefix(own))
            for a in above
            if all(file.name.startswith(own) for file in a.files)
        ]
    if not artifacts:
        raise InputError(
            f"{folder.name or folder} holds no {RECEIPT_NAME}: nothing is known about its files.",
            hint="Push a folder that qexport wrote; the receipt lies beside the files.",
        )
    _refuse_twice(artifacts)
    return tuple(artifacts)


def check_labels(artifacts: Iterable[Artifact]) -> None:
    """What is published has a label and a kind that can stand in tags and commands as they are.

    Raises:
        InputError: one has not.
    """
    for artifact in artifacts:
        for word in (artifact.label, artifact.kind):
            if not LABEL.fullmatch(word):
                raise _broken(RECEIPT_NAME, f"{word[:60]!r} is no label of an artifact")


def select(artifacts: Sequence[Artifact], only: Iterable[str]) -> tuple[Artifact, ...]:
    """The artifacts with these labels (in any case); all of them where none is named.

    Raises:
        UsageProblem: a label that no artifact has.
    """
    wanted = [word.casefold() for word in only]
    known = {artifact.label.casefold() for artifact in artifacts}
    if unknown := [word for word in wanted if word not in known]:
        labels = ", ".join(sorted({artifact.label for artifact in artifacts}))
        raise UsageProblem(
            f"there is no artifact {unknown[0]!r} in the receipt", hint=f"There are: {labels}."
        )
    return tuple(a for a in artifacts if not wanted or a.label.casefold() in wanted)


def _entries(folder: Path, rename: Callable[[str], str]) -> list[Artifact]:
    path = folder / RECEIPT_NAME
    if not path.is_file():
        return []
    receipt = read_receipt(folder)
    if receipt is None:
        raise _broken(RECEIPT_NAME, "it is no JSON, or of a version that this qexport does not know")
    listed = receipt.get("artifacts")
    entries = listed if isinstance(listed, list) else []
    return [_renamed(parse_entry(entry, RECEIPT_NAME), rename) for entry in entries]


def _renamed(artifact: Artifact, rename: Callable[[str], str]) -> Artifact:
    return _with_files(artifact, [ArtifactFile(rename(f.name), f.size, f.sha256) for f in artifact.files])


def _with_files(artifact: Artifact, files: Sequence[ArtifactFile]) -> Artifact:
    listed = [{"name": file.name, "bytes": file.size, "sha256": file.sha256} for file in files]
    return Artifact(artifact.kind, artifact.label, tuple(files), {**artifact.entry, "files": listed})


def _refuse_twice(artifacts: Sequence[Artifact]) -> None:
    owners: dict[str, str] = {}
    for artifact in artifacts:
        for file in artifact.files:
            # Folder formats written beside each other may share a tokenizer: equal bytes are no conflict.
            if owners.setdefault(file.name, file.sha256) != file.sha256:
                raise _broken(RECEIPT_NAME, f"{file.name} is in it twice, with different hashes")


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return (
        bool(name)
        and not any(part in ("", ".", "..") or part.startswith("-") for part in parts)
        and "\\" not in name
        and without_hidden(name) == name
    )


def _broken(where: str, why: str) -> InputError:
    return InputError(f"{where} cannot be used: {why}.", hint="Export again, so that a receipt is written.")
