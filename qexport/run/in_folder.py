"""What lies in a folder that can be run: the artifacts of its receipts, and models that no receipt knows.

For ``verify DIR`` and ``bench DIR``. A file that a receipt names must be the one that was written; what is
not there, or another file of the same size, is a problem of its own, and nothing is run in its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.container.gguf_file import homes_of, read_gguf, shard_paths
from qexport.errors import InputError, QexportError, UsageProblem
from qexport.formats.gguf.head_beside import head_beside
from qexport.receipt.folder import known_in
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.on_disk import check_hashes, check_sizes
from qexport.receipt.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qexport.receipt.types import Artifact


# Of a publisher who follows llama.cpp's words; a receipt that calls such a file a model is believed.
_BESIDE = re.compile(r"mmproj|imatrix|^(mtp|eagle3|dflash|dspark)-", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """Something to run: the (first) file of a GGUF, or a folder.

    Attributes:
        home: the folder that the entry's file names are relative to.
        entry: what a receipt says of it; ``None`` where no receipt knows it.
        heads: what receipts say of the file that its MTP head is in.
    """

    path: Path
    home: Path
    entry: Artifact | None = None
    heads: tuple[Artifact, ...] = ()

    @property
    def name(self) -> str:
        """Relative to the folder that was given."""
        return self.path.relative_to(self.home).as_posix() if self.path != self.home else self.path.name

    @property
    def proven(self) -> bool:
        """Whether its receipt calls it verified."""
        return self.entry is not None and self.entry.state is State.PASSED


def is_one_artifact(path: Path) -> bool:
    """A file, or a folder that is a model: config and weights at its top."""
    return path.is_file() or ((path / "config.json").is_file() and any(path.glob("*.safetensors")))


def refuse_tower(path: Path) -> None:
    """Raise UsageProblem for llama.cpp's file of a vision tower, whatever it is called."""
    if not path.is_file() or path.suffix.lower() != ".gguf":
        return
    try:
        tower = read_gguf(path).architecture == "clip"
    except QexportError:
        return  # whoever opens it says what is wrong
    if tower:
        raise UsageProblem(
            f"{path.name} is a vision tower, which runs beside a model and not by itself.",
            hint="Name the model's file, or the folder of both.",
        )


def artifacts_in(folder: Path) -> list[Found]:
    """Everything that can be run, in the order of receipts, then by name.

    Importance matrices, projectors and drafters beside their trunk are no models by themselves.

    Raises:
        InputError: there is nothing to run, or a receipt that cannot be used.
    """
    receipts = any(folder.rglob(RECEIPT_NAME))
    known = known_in(folder).artifacts if receipts else ()
    of_receipts = {file.name for artifact in known for file in artifact.files}
    found = {
        _place(folder, artifact): artifact
        for artifact in known
        if artifact.is_model and not artifact.is_drafter
    }
    result = [Found(path, folder, each, head_of(each, known)) for path, each in found.items()]
    for path in _models(folder):
        inside = path.relative_to(folder).as_posix()
        if inside not in of_receipts and not any(name.startswith(f"{inside}/") for name in of_receipts):
            result.append(Found(path, folder))
    if not result:
        raise InputError(
            f"There is nothing to run in {folder.name or folder}: no GGUF file, and no folder of a model.",
            hint="Name a .gguf file, or a folder that an export wrote.",
        )
    return result


def check_files(found: Found) -> None:
    """Compare with the receipt, hashes included; with those of an MTP head in a file beside it, too.

    Raises:
        InputError: a file is not there, or is not the one that was written.
    """
    check_file_sizes(found)
    for entry in () if found.entry is None else (found.entry, *found.heads):
        check_hashes(found.home, {file.name: file.sha256 for file in entry.files})


def check_file_sizes(found: Found) -> None:
    """As :func:`check_files`, without reading."""
    for entry in () if found.entry is None else (found.entry, *found.heads):
        check_sizes(found.home, entry)


def head_of(artifact: Artifact, known: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """The artifact beside this one that is its MTP head, where it says so itself."""
    name = artifact.head_file
    return tuple(each for each in known if each.kind == "mtp" and each.name.rpartition("/")[2] == name)


def lost_head(path: Path) -> str:
    """Why the MTP head that the receipt of the file at ``path`` names is not there; empty: it is."""
    try:
        known = known_in(path.parent).artifacts if path.is_file() else ()
    except InputError:
        return ""
    mine = (each.head_file for each in known if any(file.name == path.name for file in each.files))
    name = next(filter(None, mine), "")
    if not name:
        return ""
    if not any((each / name).is_file() for each in homes_of(path)):
        return f"its MTP head is in {name}, which is not here"
    head, why = head_beside(path, read_gguf(path))
    return "" if head or not why else f"its MTP head is in {name}, and what is here is another's: {why}"


def _place(folder: Path, artifact: Artifact) -> Path:
    return folder / (artifact.name if artifact.is_file else artifact.top)


def _models(folder: Path) -> Iterator[Path]:
    """GGUF files (first shards, there or not) and folders of models, outside hidden folders."""
    seen: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_dir():
            if is_one_artifact(path):
                yield path
        elif path.suffix.lower() == ".gguf" and not _BESIDE.search(path.name):
            first = shard_paths(path)[0]
            if first not in seen:
                seen.add(first)
                yield first
