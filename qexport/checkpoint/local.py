"""A checkpoint in a folder: headers read at once, weights when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from qexport.checkpoint.config import is_text
from qexport.checkpoint.header import read_header
from qexport.checkpoint.layout import (
    INDEX_NAME,
    TEMPLATE_FOLDER,
    Layout,
    join_layout,
    read_layout,
    small_files,
)
from qexport.checkpoint.paths import leads_out, read_small, reading, snapshot_of
from qexport.checkpoint.refusals import refuse_dtypes
from qexport.checkpoint.source_file import SourceFile, Stamp, changed_since, stamp
from qexport.checkpoint.tensors import StoredTensor, check_known, matrix_shape
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

# Ends of names without which a model would be another one, or none.
_NEEDED = (
    ".safetensors",
    ".index.json",
    ".model",
    "config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)


class LocalCheckpoint:
    """A folder with safetensors weights and their config; implements ``Checkpoint``, usable from threads.

    Opening it reads listing, config, index and headers; every check that needs no weights is made then.

    Args:
        path: the folder.
        label: what to call it in messages and receipts; the folder's own name when not given, and for a
            snapshot in a Hub cache the repository's.
        quantized: open a quantized checkpoint as well; its packed tensors are read as they are stored.
        weights: the safetensors files to read (such as a sidecar), instead of those that are the model.

    Attributes:
        on_read: called as ``on_read(name, start, stop)`` before rows of a tensor are handed out, from the
            thread that asks for them; for tests and accounting.
        revision: the commit, where it was downloaded from the Hub.
        unused: safetensors files in the folder that are no part of the model.
        led_out: links to somewhere outside of the folder, which are left out.
        stale_index: why the index is not believed, where it is not.

    Raises:
        InputError: there is no such folder, or nothing in it that can be exported; the message says which.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        label: str | None = None,
        quantized: bool = False,
        weights: Sequence[str] | None = None,
    ) -> None:
        self.folder = Path(path)
        snapshot = snapshot_of(self.folder)
        # absolute() and not resolve(): a symlink keeps the name that the user gave it.
        own = self.folder.absolute().name or self.folder.resolve().name or "checkpoint"
        self.label = label or (own if snapshot is None else snapshot.label)
        self.on_read: Callable[[str, int, int], None] | None = None
        self.revision: str | None = None if snapshot is None else snapshot.commit
        listing, self.led_out = _listing(self.folder, self.label, str(path))
        # Before anything is read, so that a change from now on is seen.
        stamps = self._stamped({*listing, *(weights or ())})
        if weights is None:
            layout = read_layout(self.label, listing, self._read, quantized=quantized)
        else:
            layout = Layout(tuple(weights), None, small_files(listing), ())
        layout, tensors = join_layout(self.label, layout, self._headers)
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(tensors)
        self.files: Mapping[str, int] = MappingProxyType({**layout.files})
        read = {*layout.weights, *layout.files, INDEX_NAME}
        self._stamps = {file: each for file, each in stamps.items() if file in read}
        self.unused: tuple[str, ...] = layout.unused
        self.stale_index: str | None = layout.stale
        if not quantized:
            refuse_dtypes(self.label, tensors, layout.declared)
        self._weights = {
            file: SourceFile(self.folder / file, file, stamps[file].size) for file in layout.weights
        }

    def __repr__(self) -> str:
        return f"<LocalCheckpoint {self.label}: {len(self.tensors)} tensors in {len(self._weights)} files>"

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``files``. Raises InputError when it is not one of them, or cannot be read."""
        check_known(self, name)
        return self._read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of tensor ``name``: a ``(stop - start, columns)`` in its stored dtype.

        Raises:
            InputError: there is no such tensor.
            EnvironmentProblem: its file changed, or cannot be read.
            ValueError: rows outside the tensor.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise InputError(f"{self.label} has no tensor {name!r}.")
        rows = matrix_shape(tensor.shape)[0]
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows [{start}, {stop}) of {name}, which has {rows}")
        if self.on_read is not None:
            self.on_read(name, start, stop)
        return self._weights[tensor.file].rows(tensor, start, stop)

    def identity(self) -> list[object]:
        """Name, size, times and inode of every weight file as it was at first: another value means other
        weights, perhaps."""
        return [[file, *self._stamps[file].identity()] for file in self._weights]

    def changed(self) -> list[str]:
        """The files, weights and small ones, that are not any more what they were when this was opened."""
        return [name for name, before in self._stamps.items() if changed_since(self.folder / name, before)]

    def _stamped(self, names: Iterable[str]) -> dict[str, Stamp]:
        try:
            return {name: stamp(self.folder / name) for name in names}
        except OSError as error:
            raise InputError(f"{self.label}: a file is gone: {error.strerror}") from error

    def _headers(self, files: Sequence[str]) -> list[dict[str, StoredTensor]]:
        return [read_header(self.folder / file, file=file)[0] for file in files]

    def _read(self, name: str) -> bytes:
        return read_small(self.folder / name, f"{self.label}: {name}")


def _listing(folder: Path, label: str, typed: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Sizes of the files at the top and in the template folder, and names of those that lead out of it.

    Links inside the folder, and those of the Hub's cache, count as what they lead to.
    """
    with reading(f"The folder {typed}"):
        if not folder.exists():
            hint = "Check the path, or give a Hub repository as org/name."
            raise InputError(f"There is no folder {typed}.", hint=hint)
        if not folder.is_dir():
            raise _not_a_folder(typed)
        found = [entry for entry in folder.iterdir() if entry.is_file()]
        templates = folder / TEMPLATE_FOLDER
        if templates.is_dir():
            found += [entry for entry in templates.iterdir() if entry.is_file()]
        sizes = {entry.relative_to(folder).as_posix(): entry.stat().st_size for entry in found}
        for name in [name for name in sizes if not is_text(name)]:
            if name.endswith((".safetensors", ".jinja")):
                raise InputError(
                    f"{label} has a file {name!a}, whose name is not text in UTF-8: no receipt can hold it.",
                    hint="Rename the file, or move it elsewhere.",
                )
            del sizes[name]
        led_out = tuple(sorted(name for name in sizes if leads_out(folder, folder / name)))
        listing = {name: size for name, size in sizes.items() if name not in led_out}
        needed = [name for name in led_out if name.endswith(_NEEDED)]
        if needed:
            raise InputError(
                f"{label}: {needed[0]} is a link that leads out of the folder.",
                hint="Put the file itself there (a hard link will do), or give the folder that it lies in.",
            )
        if not listing:
            inside = sorted(entry.parent.name for entry in folder.glob("*/config.json"))
            hint = (
                f"Did you mean {label}/{inside[0]}?" if inside else "Give the folder that holds config.json."
            )
            raise InputError(f"The folder {typed} has no files in it.", hint=hint)
    return listing, led_out


def _not_a_folder(typed: str) -> InputError:
    if typed.lower().endswith(".gguf"):
        hint = "Give the folder of the safetensors checkpoint that the GGUF was made from."
        return InputError(f"{typed} is a GGUF file: an output here, not an input.", hint=hint)
    return InputError(
        f"{typed} is a file, not a folder.", hint="Give the folder that holds it and config.json."
    )
