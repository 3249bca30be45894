"""Showing a push, real or rehearsed: for ``qexport push`` and the end of ``qexport run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.sizes import counted, size_text

if TYPE_CHECKING:
    from qexport.cli._output import Output
    from qexport.publishing.plan import PushOptions
    from qexport.publishing.push import Pushed, Rehearsal


def show_push(output: Output, options: PushOptions, done: Pushed | Rehearsal) -> None:
    """What was published, or (a rehearsal) all that would be."""
    from qexport.publishing.push import Rehearsal

    if isinstance(done, Rehearsal):
        _show(output, done, options)
    else:
        _tell(output, done)


def _show(output: Output, rehearsal: Rehearsal, options: PushOptions) -> None:
    """The plan: files, what stays here, the card."""
    plan, remote = rehearsal.plan, rehearsal.remote
    state = {True: "private", False: "public", None: "unknown"}[remote.private]
    output.document(
        {
            "dry_run": True,
            **plan.to_json(),
            "branch": options.branch,
            "collection": options.collection,
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
    output.text(f"{counted(len(plan.uploads), 'file')}, {size_text(plan.size)}; nothing has been sent.")
    if plan.unread:
        output.text(
            f"{counted(len(plan.unread), 'file was', 'files were')} not read, the receipt's hashes "
            "stand: a push reads them and "
            "refuses what differs (--rehash does it now)."
        )
    if options.collection is not None:
        output.text(f"Would be added to the collection {options.collection}.")
    for artifact in plan.earlier:
        output.text(f"Already there and kept: {artifact.label} ({artifact.files[0].name})")
    for left in plan.left_out:
        output.text(f"Stays here: {left.name} ({left.why})")
    output.text(f"\n{plan.card}", as_is=True)


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
    output.text(f"Pushed {counted(len(plan.uploads), 'file')}, {size_text(plan.size)}: {pushed.url} ({seen})")
    output.text(f"Commit {pushed.commit}")
