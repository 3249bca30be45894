"""``qexport push``: what was exported, onto the Hub."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import JSON
from qexport.cli._output import Output, human_bytes
from qexport.publish.plan import PushOptions
from qexport.publish.push import push, rehearse

if TYPE_CHECKING:
    from qexport.export.execute import Progress
    from qexport.publish.push import Pushed, Rehearsal

__all__ = ["command"]


@click.command("push")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo")
@click.option("--dry-run", is_flag=True, help="Show the files, their hashes and the card. Sends nothing.")
@click.option(
    "--public", is_flag=True, help="Make the repository public in the end; all of it must be verified."
)
@click.option(
    "--allow-unverified", is_flag=True, help="Push what has not passed verification; the card says so."
)
@click.option("--only", metavar="LABEL", multiple=True, help="Push this artifact only, such as Q4_K_M.")
@click.option(
    "--include", metavar="NAME", multiple=True, help="Push a file that no receipt knows (*.png works, too)."
)
@click.option("--branch", "--revision", metavar="NAME", help="Branch to commit to; made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("-m", "--message", help="Message of the commit.")
@click.option("--base-model", metavar="ID", help="Hub id of the exported model, for the card.")
@click.option("--quantized-by", metavar="NAME", help="Whom the card names.  [default: REPO's owner]")
@click.option("--replace-card", is_flag=True, help="Replace a README.md that qexport did not write.")
@click.option("--rehash", is_flag=True, help="Read every file again and compare it with its receipt.")
@click.option(
    "--workers", type=click.IntRange(1, 32), default=5, show_default=True, help="Files sent at a time."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds without an answer before a request is made again.",
)
@JSON
def command(folder: Path, repo: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Publish the artifacts in DIR as the model repository REPO (org/name), in one commit.

    The model card, SHA256SUMS and the receipt are made from DIR's qexport.json. A new repository is private.
    The access token is the Hub client's own (`hf auth login` or HF_TOKEN). An upload that was cut off goes on
    when the command is run again.

    \b
    Examples:
      qexport push ./merged-GGUF alice/Merged-GGUF --dry-run
      qexport push ./merged-GGUF alice/Merged-GGUF --base-model alice/Merged
      qexport push ./merged-GGUF alice/Merged-GGUF --only Q4_K_M --public
    """
    output = Output(as_json=as_json)
    options = PushOptions(folder, repo, **given)

    def bar(total: int) -> AbstractContextManager[Progress]:
        return output.progress(total, "hashing") if total else nullcontext(_Still())

    if dry_run:
        _show(output, rehearse(options, output.say, bar=bar), options)
        return
    _tell(output, push(options, output.say, bar=bar, bars=sys.stderr.isatty() and not as_json))


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
        [[upload.name, human_bytes(upload.size), upload.sha256] for upload in plan.uploads],
        title=f"{plan.repo} ({state if remote.exists else 'new, private'})",
    )
    output.text(f"{len(plan.uploads)} files, {human_bytes(plan.size)}; nothing has been sent.")
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
    output.text(f"Pushed {len(plan.uploads)} files, {human_bytes(plan.size)}: {pushed.url} ({seen})")
    output.text(f"Commit {pushed.commit}")
