"""Sending: upload everything where nobody sees it, then make all of it visible in one commit.

Objects that reached the Hub's storage are found there again by their hash, whoever asks (the LFS batch
answer says so; Xet does it by chunks), so a run that was cut off goes on without a state file of ours. The
commit names its parent: if somebody else's came in between, the Hub refuses it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qexport.publishing.problems import client_errors, is_conflict, is_passing
from qexport.publishing.remote import look

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from huggingface_hub import CommitOperationAdd, HfApi

    from qexport.publishing.plan import PushOptions, Upload


_T = TypeVar("_T")
# Seconds before the second, third and fourth attempt. The client's own five retries of a request, which
# take half a minute, come before each.
WAITS = (2.0, 10.0, 30.0)


@dataclass(frozen=True)
class Committed:
    """The branch's commit that holds the push, and the pull request's address if one was opened."""

    sha: str
    pull_request: str | None = None


def retried(call: Callable[[], _T], say: Callable[[str], None], doing: str) -> _T:
    """``call()``, again when it fails in a way that may pass by itself.

    Raises:
        Exception: the client's, when it does not pass or the attempts are used up.
    """
    for wait in WAITS:
        try:
            return call()
        except client_errors() as error:
            if not is_passing(error):
                raise
            say(f"  {doing} was interrupted ({type(error).__name__}); trying again in {wait:.0f} s")
        time.sleep(wait)
    return call()


def operations(uploads: Sequence[Upload]) -> list[CommitOperationAdd]:
    """The client's operations, with the hashes that are known: it would read every file to compute them."""
    from huggingface_hub import CommitOperationAdd

    made = []
    for file in uploads:
        content = file.path if file.data is None else file.data
        assert content is not None
        operation = CommitOperationAdd(file.name, content)
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)
        made.append(operation)
    return made


def upload(
    api: HfApi, options: PushOptions, made: Sequence[CommitOperationAdd], say: Callable[[str], None]
) -> None:
    """Bring the large files into the Hub's storage; nothing shows in the repository yet.

    Raises:
        Exception: the client's.
    """
    send = partial(api.preupload_lfs_files, options.repo, made, free_memory=False, **_where(options))
    retried(send, say, "the upload")


def _where(options: PushOptions) -> dict[str, Any]:
    return {
        "revision": options.branch,
        "create_pr": options.create_pr,
        "num_threads": options.workers,
    }


def commit(
    api: HfApi,
    options: PushOptions,
    made: Sequence[CommitOperationAdd],
    uploads: Sequence[Upload],
    parent: str,
    message: str,
) -> Committed:
    """One commit on top of ``parent``; when nothing differs, the client makes none.

    A commit is the one request that must not be repeated blindly: when its answer was lost, the branch is
    looked at first.

    Raises:
        Exception: the client's; on a conflict, with the branch as somebody else left it.
    """
    for attempt in range(len(WAITS) + 1):
        try:
            done = api.create_commit(
                options.repo,
                made,
                commit_message=message,
                parent_commit=parent,
                **_where(options),
            )
            return Committed(done.oid, done.pr_url)
        except client_errors() as error:
            # A second pull request is worse than an error.
            if options.create_pr or not (is_passing(error) or (attempt and is_conflict(error))):
                raise
            if (landed := _landed(api, options, uploads, parent)) is not None:
                return Committed(landed)
            if is_conflict(error) or attempt == len(WAITS):
                raise
        time.sleep(WAITS[attempt])
    raise AssertionError("the last attempt returns or raises")


def _landed(api: HfApi, options: PushOptions, uploads: Sequence[Upload], parent: str) -> str | None:
    """The branch's commit where it is not ``parent`` and holds all that is sent."""
    try:
        now = look(api, options.repo, options.branch, options.timeout)
    except client_errors():
        return None
    if now.sha is None or now.sha == parent:
        return None
    for upload in uploads:
        found = now.files.get(upload.name)
        if found is None or found.size != upload.size:
            return None
        if found.sha256 != upload.sha256 and (found.sha256 or found.blob != _git_blob(upload.content())):
            return None
    return now.sha


def _git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
