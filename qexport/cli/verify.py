"""``qexport verify``: does an artifact do what it promises? Ours or anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qexport.cli._options import JSON, THREADS, measure_option, runtime_options, verify_options
from qexport.cli._output import Output
from qexport.errors import EnvironmentProblem, VerificationError

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
@measure_option
@runtime_options
@THREADS
@JSON
def command(artifact: Path, against: str | None, revision: str | None, as_json: bool, **given: Any) -> None:
    """Load ARTIFACT in a runtime that its users use, let it write, and judge it.

    ARTIFACT is a .gguf file (or the first of its shards), or a folder: MLX, FP8, NVFP4 in ModelOpt's or
    compressed-tensors' layout. What a folder stores is first compared with what its config tells a loader,
    since loaders do not. Exit code 4 means that something is wrong, 6 that no runtime could run it.

    \b
    Examples:
      qexport verify Model-MLX-6bit --against ./merged
      qexport verify Model-NVFP4 --against ./merged --runtime vllm --runtime-python ~/vllm/bin/python
      qexport verify Model-Q4_K_M.gguf
      qexport verify Model-Q4_K_M.gguf --against ./merged
      qexport verify Model-Q8_0.gguf --llama-server ~/llama.cpp/build/bin/llama-server
    """
    from qexport.cli._verify import verify_options_from
    from qexport.pipeline.verify import verify_artifact, view_to_compare
    from qexport.verify.table import COLUMNS, describe, rows

    output = Output(as_json=as_json)
    view = view_to_compare(against, revision) if against else None
    options = verify_options_from(given)
    report = verify_artifact(artifact, view=view, options=options, say=output.say, measure=given["measure"])
    output.document(report.to_json())
    for line in describe(report):
        output.text(line)
    output.table(COLUMNS, rows([report]))
    for text in report.texts:
        output.say(f"> {text.strip()}")
    if report.failures:
        raise VerificationError(f"{artifact.name} failed verification: {report.verdict}")
    if not report.passed:
        raise EnvironmentProblem(f"{artifact.name} is not verified: no runtime has run it")
