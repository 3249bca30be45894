"""What the repository holds before the push: its commit, its files, its card, its receipt.

Everything is read at one commit, and the push is made on top of that commit or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.publishing.gate import check_labels
from qexport.receipt.names import CARD_NAME, RECEIPT_NAME
from qexport.receipt.store import parse_receipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from huggingface_hub import HfApi

    from qexport.receipt.types import Artifact, File


_LARGEST_TEXT = 32 << 20


@dataclass(frozen=True)
class RemoteFile:
    """``sha256`` for a file in large-file storage, else ``blob``: git's own hash of the content."""

    size: int
    sha256: str | None
    blob: str


@dataclass(frozen=True)
class Remote:
    """A repository at one commit; without ``sha`` there is none yet, or not that branch (``exists``)."""

    exists: bool = False
    private: bool | None = None
    sha: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    card: str | None = None
    artifacts: tuple[Artifact, ...] = ()


def look(api: HfApi, repo: str, branch: str | None, timeout: float) -> Remote:
    """Read the repository's state; an absent one gives an empty ``Remote``.

    Raises:
        Exception: what the client raises when it cannot ask.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # One request for commit and files: the client's own listing of a tree waits without limit.
        info = api.model_info(repo, revision=branch, files_metadata=True, timeout=timeout)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return Remote()
    except RevisionNotFoundError:
        return Remote(exists=True, private=api.model_info(repo, timeout=timeout).private)
    files = {
        sibling.rfilename: RemoteFile(
            sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id or ""
        )
        for sibling in info.siblings or ()
    }
    card = _text(api, repo, info.sha, CARD_NAME, files)
    receipt = _text(api, repo, info.sha, RECEIPT_NAME, files)
    return Remote(True, info.private, info.sha, files, card, _artifacts(receipt))


def still_there(remote: Remote, ours: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """The artifacts of earlier pushes that stay: no file of theirs is replaced, and all are still there."""
    replaced = {file.name for artifact in ours for file in artifact.files}
    return tuple(
        artifact
        for artifact in remote.artifacts
        if not any(file.name in replaced for file in artifact.files) and held(remote, artifact)
    )


def held(remote: Remote, artifact: Artifact) -> bool:
    """Whether the repository has all files of an artifact, as they were written."""
    return all(_same(remote.files.get(file.name), file) for file in artifact.files)


def _same(found: RemoteFile | None, file: File) -> bool:
    """Of a small file only the size is known without reading it."""
    return found is not None and found.size == file.size and found.sha256 in (None, file.sha256)


def _artifacts(receipt: str | None) -> tuple[Artifact, ...]:
    """The entries of the repository's receipt; one that cannot be read is as good as none."""
    try:
        found = parse_receipt(receipt.encode()).receipt.artifacts if receipt is not None else ()
        check_labels(found)
        return found
    except InputError:
        return ()


def _text(api: HfApi, repo: str, sha: str | None, name: str, files: Mapping[str, RemoteFile]) -> str | None:
    """A small file, read past the client's cache: a dry run leaves nothing behind."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_backoff,
    )

    if name not in files or files[name].size > _LARGEST_TEXT:
        return None
    url = hf_hub_url(repo, name, revision=sha, endpoint=api.endpoint)
    response = http_backoff(
        "GET", url, headers=build_hf_headers(library_name="qexport"), follow_redirects=True
    )
    hf_raise_for_status(response)
    text: str = response.content.decode("utf-8", errors="replace")
    return text
