"""What is asked of the Hugging Face client: the commit, the listing, a small file, a header, room on disk.

Every call goes through the client's public functions, so that tokens, proxies, mirrors and the cache are as
the user set them up. Errors come out as the client's own; :mod:`qexport.checkpoint.hub_errors` translates.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qexport.checkpoint.header import header_length, parse_header
from qexport.checkpoint.layout import TEMPLATE_FOLDER
from qexport.checkpoint.paths import read_small
from qexport.checkpoint.tensors import StoredTensor
from qexport.errors import EnvironmentProblem

# Nearly all headers fit; one that does not costs a second request.
_FIRST_RANGE = 1 << 17
# Seconds without an answer before giving up on one request.
_TIMEOUT = 30.0


def resolve(repo: str, revision: str | None, endpoint: str | None, cache_dir: str | Path | None) -> HubFiles:
    """The files of ``repo`` at the commit that ``revision`` stands for now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint, library_name="qexport")
    sha = api.model_info(repo, revision=revision, timeout=_TIMEOUT).sha
    if not sha:
        raise EnvironmentProblem(
            f"The Hub does not say which commit {repo} is at.", hint="Check HF_ENDPOINT."
        )
    tree = api.list_repo_tree(repo, revision=sha, recursive=True)
    sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    listing = {name: size for name, size in sizes.items() if _visible(name)}
    return HubFiles(repo, sha, listing, endpoint, cache_dir, revision)


def cached_folder(repo: str, revision: str | None, cache_dir: str | Path | None = None) -> Path | None:
    """The folder of an earlier download, complete or not, found offline; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except IncompleteSnapshotError as error:
        # Expected: files that no export needs were never fetched. What is missing shows when it is opened.
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None


@dataclass(frozen=True)
class HubFiles:
    """The files of one commit: ``listing`` holds what a folder's listing would, sizes in bytes by name."""

    repo: str
    sha: str
    listing: dict[str, int]
    endpoint: str | None
    cache_dir: str | Path | None
    revision: str | None = None
    _read: dict[str, bytes] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fetch(self, name: str) -> bytes:
        """A small file, through the client's cache; no progress bar for a few kilobytes."""
        from huggingface_hub.utils.tqdm import silent_tqdm

        with self._lock:
            if name not in self._read:
                path = self.local(name, tqdm_class=silent_tqdm)
                self._read[name] = read_small(path, f"{self.repo}: {name}")
            return self._read[name]

    def local(self, file: str, *, tqdm_class: Any = None) -> Path:
        """A file in the client's cache, downloaded (with the client's own bar) if it is not there."""
        from huggingface_hub import hf_hub_download

        where = {"endpoint": self.endpoint, "cache_dir": self.cache_dir, "tqdm_class": tqdm_class}
        return Path(hf_hub_download(self.repo, file, revision=self.sha, **where))

    def header(self, file: str) -> dict[str, StoredTensor]:
        """The tensors of a safetensors file, from its first bytes."""
        size = self.listing[file]
        data = self._range(file, 0, min(_FIRST_RANGE, size))
        end = header_length(data, file=file, file_size=size)
        if end > len(data):
            data += self._range(file, len(data), end)
        return parse_header(data, file=file, file_size=size)[0]

    def take_stock(self, names: Iterable[str]) -> set[str]:
        """Which of ``names`` are complete in the cache.

        Raises EnvironmentProblem where the others do not fit on its disk.
        """
        from huggingface_hub import constants, try_to_load_from_cache

        paths = {
            name: try_to_load_from_cache(self.repo, name, cache_dir=self.cache_dir, revision=self.sha)
            for name in names
        }
        found = {name for name, path in paths.items() if isinstance(path, str)}
        folder = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        missing = sum(self.listing[name] for name in paths.keys() - found)
        free = shutil.disk_usage(folder).free
        if free < missing:
            message = f"{self.repo} takes {missing} more bytes in the cache, whose disk has {free} free."
            hint = "Free some room, or set HF_HOME to a folder on a larger disk."
            raise EnvironmentProblem(message, hint=hint)
        return found

    def remember(self, folder: Path) -> None:
        """Note in the cache which commit the revision stood for, so that the download is found offline.

        The client notes it only when it resolved the name itself, and it was given the commit.
        https://huggingface.co/docs/huggingface_hub/guides/manage-cache (refs)
        """
        name = self.revision or "main"
        if name == self.sha or ".." in name:
            return
        note = folder.parent.parent / "refs" / name
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"{note.name}.{threading.get_ident()}.tmp")
        fresh.write_text(self.sha)
        fresh.replace(note)

    def _range(self, file: str, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of a file; stops reading there even when the server sends all of it."""
        from huggingface_hub import hf_hub_url

        # Public names, of which the package's __init__ keeps no typed list.
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        if start == stop:
            return b""
        url = hf_hub_url(self.repo, file, revision=self.sha, endpoint=self.endpoint)
        wanted = {
            **build_hf_headers(library_name="qexport"),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        data = bytearray()
        with http_stream_backoff(
            "GET", url, headers=wanted, timeout=_TIMEOUT, max_retries=2, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            # 200 instead of 206: the range was ignored, and the file comes from its beginning.
            skip = start if response.status_code == 200 else 0
            for chunk in response.iter_bytes(1 << 16):
                data += chunk
                if len(data) >= skip + stop - start:
                    break
        found = bytes(data[skip : skip + stop - start])
        if len(found) != stop - start:
            raise EnvironmentProblem(f"{self.repo}: the answer for {file} was cut short.", hint="Try again.")
        return found


def _visible(name: str) -> bool:
    head, slash, tail = name.partition("/")
    return not slash or (head == TEMPLATE_FOLDER and "/" not in tail)


def bar_class(progress: Callable[[int, int], None], done: int, total: int) -> type[Any]:
    """The client's progress bars as one callback: a class to give as ``tqdm_class``, which draws nothing.

    ``snapshot_download`` has one bar that counts files, one the bytes that arrive and one the bytes that are
    written. Only the last is followed, since with Xet storage less arrives than is written.

    ``progress`` is called with bytes, one call at a time; ``done`` are there already, ``total`` in the end.
    """
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    written = done

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal written
            if self.counts_bytes and n:
                with lock:
                    # A transfer that starts over is subtracted again; never show more than there is.
                    written += int(n)
                    progress(min(written, total), total)
            return None

    return Bar
