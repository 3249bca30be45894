"""``qexport report``: what was exported, in one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qexport.cli._options import JSON
from qexport.cli._output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("report")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=_FOLDER)
@click.option(
    "--compare",
    metavar="DIR",
    multiple=True,
    type=_FOLDER,
    help="A folder of another model, such as the base: its artifacts are set beside those of DIR.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the report; made if it is not there.  [default: ./report]",
)
@click.option(
    "--png",
    is_flag=True,
    help="Write report.png, too: the size chart for a card or a link's preview. Needs Pillow.",
)
@JSON
def command(
    folders: tuple[Path, ...], compare: tuple[Path, ...], out: Path | None, png: bool, as_json: bool
) -> None:
    """Write report.html, report.md and report.json about the artifacts in DIR.

    Everything comes from the receipts (qexport.json) beside the artifacts: size against KL divergence, MTP
    acceptance and speed where they were measured, verdicts, provenance, checksums. Of the files themselves it
    looks at the sizes: what is gone or changed is not called passed. report.html is one file that loads
    nothing. Speeds with MTP are there after `qexport bench`.

    \b
    Examples:
      qexport report ./merged-GGUF ./merged-MLX-6bit -o report
      qexport report ./tuned-GGUF --compare ./base-GGUF
    """
    from qexport.report.gather import gather
    from qexport.report.words import summary
    from qexport.report.write import save_report

    output = Output(as_json=as_json)
    report = gather(folders, compare=compare, say=output.say)
    paths = save_report(report, out or Path("report"), png=png)
    output.document(report.to_json())
    for line in summary(report):
        output.text(line)
    for path in paths.all:
        output.text(str(path))
    _follow(output, folders)


def _follow(output: Output, folders: Sequence[Path]) -> None:
    """What failed is looked at, what is not proven is proven; only what passed is published."""
    from qexport.receipt.folder import known_in
    from qexport.receipt.state import State

    found = [(folder, made) for folder in folders for made in known_in(folder).artifacts if made.is_model]
    failed = [
        folder / (made.name if made.is_file else made.top)
        for folder, made in found
        if made.state is State.FAILED
    ]
    lost = any(made.lost for _, made in found)
    unproven = [folder for folder, made in found if made.state is not State.PASSED and not made.lost]
    if failed:
        output.next("verify", failed[0])
    elif unproven:
        output.next("verify", unproven[0])
    elif not lost and not any(made.broken_gates for _, made in found):
        output.next("push", folders[0], f"you/{folders[0].resolve().name}", "--dry-run")
