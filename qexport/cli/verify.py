"""``qexport verify``: does a GGUF file do what it promises? Ours or anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qexport.cli._options import JSON, THREADS, verify_options
from qexport.cli._output import Output
from qexport.cli._verify import verify_options_from
from qexport.errors import VerificationError
from qexport.pipeline.verify import view_to_compare
from qexport.verify.run import verify_gguf
from qexport.verify.table import COLUMNS, describe, rows

__all__ = ["command"]


@click.command("verify")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--against",
    metavar="MODEL",
    help="The bf16 source (folder or Hub id): tokens and log-probabilities are compared with it.",
)
@click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub.")
@verify_options
@THREADS
@JSON
def command(artifact: Path, against: str | None, revision: str | None, as_json: bool, **given: Any) -> None:
    """Load ARTIFACT (a .gguf file, or the first of its shards) in llama.cpp, let it write, and judge it.

    \b
    Examples:
      qexport verify Model-Q4_K_M.gguf
      qexport verify Model-MTP-Q4_K_M.gguf --against ./merged
      qexport verify Model-Q8_0.gguf --llama-server ~/llama.cpp/build/bin/llama-server
    """
    output = Output(as_json=as_json)
    view = view_to_compare(against, revision) if against else None
    report = verify_gguf(artifact, view=view, options=verify_options_from(given), progress=output.say)
    output.document(report.to_json())
    for line in describe(report):
        output.text(line)
    output.table(COLUMNS, rows([report]))
    for text in report.texts:
        output.say(f"> {text.strip()}")
    if not report.passed:
        raise VerificationError(f"{artifact.name} failed verification: {report.verdict}")
