"""Showing a push, real or rehearsed: for ``qexport push`` and the end of ``qexport run``."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from qexport.cli._output import Output
from qexport.cli._terminal import is_terminal
from qexport.errors import QexportError, Unproven, VerificationError
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.export.execute import Progress
    from qexport.publish.plan import PushOptions
    from qexport.publish.push import Pushed, Rehearsal


def push_folder(output: Output, options: PushOptions, *, dry_run: bool) -> None:
    """Push a folder, or show what would go."""
    from qexport.publish.push import push, rehearse

    def bar(total: int) -> AbstractContextManager[Progress]:
        return output.progress(total, "hashing") if total else nullcontext(_Still())

    if dry_run:
        _show(output, rehearse(options, output.say, bar=bar), options)
        return
    _tell(output, push(options, output.say, bar=bar, bars=is_terminal(sys.stderr) and not output.as_json))


Refused = tuple[str, QexportError]
"""A repository, and why nothing went there."""


def push_folders(output: Output, every: Sequence[PushOptions], *, dry_run: bool) -> list[Refused]:
    """Push folders of a run; returns the repositories that were refused, and with what.

    One that may not be published does not hold up the others.
    """
    refused: list[Refused] = []
    for options in every:
        try:
            push_folder(output, options, dry_run=dry_run)
        except (Unproven, VerificationError) as error:
            output.say(f"{options.repo}: {error.message}")
            refused.append((options.repo, error))
    return refused


def raise_refused(refused: Sequence[Refused]) -> None:
    """Raises VerificationError, or Unproven, where a folder may not be published."""
    if refused:
        failed = any(isinstance(error, VerificationError) for _, error in refused)
        kind = VerificationError if failed else Unproven
        raise kind(
            f"{', '.join(repo for repo, _ in refused)}: not published, for the reasons above",
            hint="`qexport push` has ways to publish all the same, marked on the card.",
        )


class _Still:
    def advance(self, amount: int) -> None:
        """There is nothing to hash."""


def _show(output: Output, rehearsal: Rehearsal, options: PushOptions) -> None:
    """The plan: files, what stays here, the card."""
    plan, remote = rehearsal.plan, rehearsal.remote
    state = {True: "private", False: "public", None: "unknown"}[remote.private]
    output.document(
        {
            "dry_run": True,
            **plan.to_json(),
            "branch": options.branch,
            "repository": {"exists": remote.exists, "private": remote.private, "commit": remote.sha},
            "not_asked": rehearsal.asked,
            "card": plan.card,
        }
    )
    if rehearsal.asked:
        output.say(f"Planned as for a new repository: {rehearsal.asked}")
    output.table(
        ("file", "size", "sha256"),
        [[upload.name, size_text(upload.size), upload.sha256] for upload in plan.uploads],
        title=f"{plan.repo} ({state if remote.exists else 'new, private'})",
    )
    output.text(f"{len(plan.uploads)} files, {size_text(plan.size)}; nothing has been sent.")
    if plan.unread:
        output.text(
            f"{len(plan.unread)} files were not read, their hashes are the receipt's: a push reads them and "
            "refuses what differs (--rehash does it now)."
        )
    for artifact in plan.earlier:
        output.text(f"Already there and kept: {artifact.label} ({artifact.files[0].name})")
    for left in plan.left_out:
        output.text(f"Stays here: {left.name} ({left.why})")
    output.text(f"\n{plan.card}")


def _tell(output: Output, pushed: Pushed) -> None:
    plan = pushed.plan
    output.document(
        {
            "dry_run": False,
            **plan.to_json(),
            "url": pushed.url,
            "commit": pushed.commit,
            "private": pushed.private,
            "changed": pushed.changed,
            "pull_request": pushed.pull_request,
        }
    )
    if not pushed.changed:
        output.text(f"{pushed.url} already holds all of it (commit {pushed.commit[:8]}).")
        return
    if pushed.pull_request:
        output.text(f"Offered as a pull request: {pushed.pull_request}")
        return
    seen = "private" if pushed.private else "public"
    output.text(f"Pushed {len(plan.uploads)} files, {size_text(plan.size)}: {pushed.url} ({seen})")
    output.text(f"Commit {pushed.commit}")
