"""A checkpoint on the Hugging Face Hub: known from headers, downloaded when its data is needed.

A safetensors header is at the beginning of its file, so a ranged request per shard tells every tensor of a
54 GB model in a few seconds. What is judged from that is judged as for a folder, by the same code. The
commit is resolved once, at the start: a push in between cannot mix two versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from qexport.checkpoint.hub_client import bar_class, resolve
from qexport.checkpoint.hub_errors import hub_errors
from qexport.checkpoint.layout import INDEX_NAME, join_layout, read_layout
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.refusals import refuse_dtypes
from qexport.checkpoint.source_file import SourceFile, Stamp, changed_since, stamp
from qexport.checkpoint.tensors import StoredTensor, check_known
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

_CONNECTIONS = 8


class HubCheckpoint:
    """A model repository on the Hub, read as headers and small files; implements ``Checkpoint``.

    Args:
        repo: ``org/name``.
        revision: branch, tag or commit; the default branch when not given.
        endpoint: another Hub; ``HF_ENDPOINT`` or huggingface.co when not given.
        cache_dir: where downloads go; the Hugging Face cache when not given.

    Attributes:
        repo: the repository's id.
        sha, revision: the commit that everything is read from (40 hexadecimal digits).
        unused: safetensors files in the repository that are no part of the model.

    Raises:
        InputError: there is no such repository or revision, it is gated or private, or nothing in it can be
            exported; the message says which.
        EnvironmentProblem: the Hub cannot be reached.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        *,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.repo = repo
        with hub_errors(repo, revision):
            self._hub = resolve(repo, revision, endpoint, cache_dir)
            self.sha = self.revision = self._hub.sha
            self.label = f"{repo}@{self.sha[:8]}"
            layout = read_layout(self.label, self._hub.listing, self._hub.fetch)
            layout, tensors = join_layout(self.label, layout, self._headers)
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(tensors)
        self.files: Mapping[str, int] = MappingProxyType({**layout.files})
        self._weights = layout.weights
        self.unused: tuple[str, ...] = layout.unused
        self.stale_index: str | None = layout.stale
        refuse_dtypes(self.label, tensors, layout.declared)
        self._fetched: dict[str, SourceFile] = {}
        self._stamps: dict[Path, Stamp] = {}

    def _headers(self, files: Sequence[str]) -> list[Mapping[str, StoredTensor]]:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(self._hub.header, files))

    def __repr__(self) -> str:
        return f"<HubCheckpoint {self.label}: {len(self.tensors)} tensors in {len(self._weights)} files>"

    @property
    def download_size(self) -> int:
        """Bytes that :meth:`download` fetches when nothing is in the cache yet."""
        return sum(self._hub.listing[name] for name in self._needed())

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``files``, downloaded on first use.

        Raises:
            InputError: it is not one of them.
            EnvironmentProblem: the Hub cannot be reached.
        """
        check_known(self, name)
        with hub_errors(self.repo, self.sha):
            return self._hub.fetch(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of a tensor whose file was fetched; see :meth:`fetch`.

        Raises:
            InputError: only its header is here.
        """
        stored = self.tensors[name]
        if stored.file in self._fetched:
            return self._fetched[stored.file].rows(stored, start, stop)
        message = f"The weights of {self.label} are not downloaded: {name} cannot be read yet."
        raise InputError(message, hint="Call download() and read from the checkpoint that it returns.")

    def identity(self) -> list[object]:
        """The repository's commit, which says what every file holds."""
        return [self.repo, self.sha]

    def changed(self) -> list[str]:
        """The fetched files that are not any more what they were then."""
        return [path.name for path, before in self._stamps.items() if changed_since(path, before)]

    folder = None
    """What is here lies in the Hub's cache, where nobody writes."""

    def fetch(self, names: Iterable[str]) -> None:
        """Download only the files that hold these tensors, so that they can be read from here.

        A base model whose MTP head is grafted is needed for a few of its shards, not for 54 GB.

        Raises:
            EnvironmentProblem: no network, or no room on the disk.
        """
        files = sorted({self.tensors[name].file for name in names} - self._fetched.keys())
        with hub_errors(self.repo, self.sha):
            self._hub.take_stock(files)
            for file in files:
                path = self._hub.local(file)
                self._stamps[path] = stamp(path)
                self._fetched[file] = SourceFile(path, file, self._hub.listing[file])

    def download(self, progress: Callable[[int, int], None] | None = None) -> LocalCheckpoint:
        """Fetch weights and small files of this commit into the cache, and open them there.

        Files that are complete in the cache are not fetched again, and a broken connection goes on where it
        stopped. The client does not keep half a file when the process ends.

        Args:
            progress: called as ``progress(done, total)`` in bytes from the downloading threads, one call at a
                time. Without it the client draws its own bars on stderr.

        Raises:
            InputError: access was withdrawn, or what arrived is not what the headers said.
            EnvironmentProblem: no network, or no room on the disk.
        """
        from huggingface_hub import snapshot_download

        needed = self._needed()
        with hub_errors(self.repo, self.sha):
            done = sum(self._hub.listing[name] for name in self._hub.take_stock(needed))
            bars = None if progress is None else bar_class(progress, done, self.download_size)
            folder = snapshot_download(
                self.repo,
                revision=self.sha,
                endpoint=self._hub.endpoint,
                cache_dir=self._hub.cache_dir,
                # Patterns, not names: a bracket in a file name must not become a character class.
                allow_patterns=[escape(name) for name in needed],
                tqdm_class=bars,
            )
            self._hub.remember(Path(folder))
        if progress is not None:
            progress(self.download_size, self.download_size)
        local = LocalCheckpoint(folder, label=self.label)
        local.revision = self.sha
        if local.tensors != self.tensors:
            message = f"{self.label}: the downloaded weights do not have the headers that the Hub showed."
            hint = "Remove the repository from the cache (`hf cache rm`) and try again."
            raise InputError(message, hint=hint)
        return local

    def _needed(self) -> list[str]:
        index = [INDEX_NAME] if INDEX_NAME in self._hub.listing else []
        return [*self.files, *index, *self._weights]
