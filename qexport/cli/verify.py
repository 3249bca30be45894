"""``qexport verify``: does an artifact do what it promises? Ours or anybody's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import JSON, THREADS, measure_option, runtime_options, verify_options
from qexport.cli._output import Output
from qexport.errors import InputError, QexportError, VerificationError
from qexport.receipt.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.verification import Verification


_WAYS_OUT = {
    State.UNCOMPARED: "Name its source with --against MODEL, or take it as it is with --allow-unverified.",
    State.NOT_RUN: "The lines above say why, and what could run it; --allow-unverified takes it as it is.",
}


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
@click.option(
    "--again",
    is_flag=True,
    help="In a folder of several: only what its receipts call verified. Is it so on this machine, too?",
)
@THREADS
@JSON
def command(
    artifact: Path, against: str | None, revision: str | None, again: bool, as_json: bool, **given: Any
) -> None:
    """Load ARTIFACT in a runtime that its users use, let it write, and judge it.

    ARTIFACT is a .gguf file (or the first of its shards), or a folder: MLX, FP8, NVFP4 in ModelOpt's or
    compressed-tensors' layout. What a folder stores is first compared with what its config tells a loader,
    since loaders do not. A folder that holds several (GGUF files, or all that `qexport run` wrote) is gone
    through by its receipts: every file must be the one that was written, and every artifact is run. Exit code
    4 means that something is wrong, 6 that no runtime could run it or that nothing was compared.

    \b
    Examples:
      qexport verify Model-MLX-6bit --against ./merged
      qexport verify Model-NVFP4 --against ./merged --runtime vllm --runtime-python ~/vllm/bin/python
      qexport verify Model-Q4_K_M.gguf --against ./merged
      qexport verify Model-GGUF
      qexport verify Model-Q8_0.gguf --llama-server ~/llama.cpp/build/bin/llama-server
    """
    from qexport.cli._export import verify_options_from
    from qexport.run.in_folder import Found, artifacts_in, check_files, is_one_artifact
    from qexport.run.verify import verify_artifact, view_to_compare

    output = Output(as_json=as_json)
    several = not is_one_artifact(artifact)
    found = artifacts_in(artifact) if several else [Found(artifact, artifact)]
    if again:
        found = [each for each in found if each.proven]
        if not found:
            raise InputError(f"Nothing in {artifact.name} is called verified by a receipt: nothing was run.")
    view = view_to_compare(against, revision) if against else None
    options = verify_options_from(given)

    reports: list[Verification] = []
    refused: list[tuple[str, QexportError]] = []
    for each in found:
        try:
            if several:
                output.title(each.name)
                check_files(each)
            report = verify_artifact(
                each.path, view=view, options=options, say=output.say, measure=given["measure"]
            )
            reports.append(replace(report, artifact=each.name) if several else report)
        except QexportError as error:
            if not several:
                raise
            refused.append((each.name, error))
            output.say(f"  {error.message}")
    several_json = {
        "artifacts": [report.to_json() for report in reports],
        "not_run": [{"artifact": name, "why": error.message} for name, error in refused],
    }
    output.document(several_json if several else reports[0].to_json())
    _show(output, reports, refused)
    _raise(reports, refused, allow_unverified=given["allow_unverified"], again=again)


def _show(
    output: Output, reports: Sequence[Verification], refused: Sequence[tuple[str, QexportError]]
) -> None:
    from qexport.verification.table import COLUMNS, describe, rows

    for report in reports:
        for line in describe(report):
            output.text(line)
        for text in report.texts:
            output.say(f"> {text.strip()}")
    others = [[name, *[""] * (len(COLUMNS) - 2), f"not run: {error.message}"] for name, error in refused]
    output.table(COLUMNS, [*rows(reports), *others])


def _named(name: str, words: str) -> str:
    """What is wrong with a file begins with its name already."""
    return words if words.startswith(name) else f"{name}: {words}"


def _raise(
    reports: Sequence[Verification],
    refused: Sequence[tuple[str, QexportError]],
    *,
    allow_unverified: bool,
    again: bool,
) -> None:
    """What failed first; then what was wrong with files; then what was not run, or not compared."""
    from qexport.receipt.state import problem, worst

    failed = [
        f"{report.artifact} failed verification: {report.verdict}" for report in reports if report.failures
    ]
    failed += [_named(each, error.message) for each, error in refused if isinstance(error, InputError)]
    if failed:
        raise VerificationError("; ".join(failed))
    if refused:
        error = refused[0][1]
        error.message = "; ".join(f"{each} is not verified: {found.message}" for each, found in refused)
        raise error
    # Again: what the receipts call compared are these very bytes.
    asked = [report for report in reports if not (again and report.state is State.UNCOMPARED)]
    kind = problem([report.state for report in asked], allow_unverified=allow_unverified)
    if kind is not None:
        open_ = [report for report in asked if not report.passed]
        named = "; ".join(f"{report.artifact}: {report.verdict}" for report in open_)
        raise kind(f"not verified: {named}", hint=_WAYS_OUT.get(worst(report.state for report in open_)))
