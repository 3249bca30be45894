"""``qexport verify``: does an artifact do what it promises? Ours or anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import (
    JSON,
    THREADS,
    head_base,
    measure_option,
    runtime_options,
    twin_option,
    verify_options,
)
from qexport.cli._output import Output
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from qexport.run.verify import Verified


@click.command("verify")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--against",
    metavar="MODEL",
    help="The bf16 source (folder or Hub id): tokens and log-probabilities are compared with it.",
)
@click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub.")
@head_base(
    "The model whose MTP head the artifact was given, also where MODEL has one: its head is compared with "
    "that. With --against."
)
@verify_options
@measure_option
@runtime_options
@twin_option
@click.option(
    "--again",
    is_flag=True,
    help="In a folder of several: only what its receipts call verified. Is it so on this machine, too?",
)
@THREADS
@JSON
def command(
    artifact: Path,
    against: str | None,
    revision: str | None,
    mtp_from: str | None,
    mtp_from_revision: str | None,
    again: bool,
    as_json: bool,
    **given: Any,
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
      qexport verify Model-Q4_K_M.gguf --against ./merged --mtp-from Qwen/Qwen3.5-9B
      qexport verify Model-GGUF
      qexport verify Model-Q8_0.gguf --llama-server ~/llama.cpp/build/bin/llama-server
    """
    from qexport.cli._export import verify_options_from
    from qexport.run.in_folder import is_one_artifact
    from qexport.run.verify import verify_all, view_to_compare

    output = Output(as_json=as_json)
    view = None
    if against:
        head = {"mtp_from": mtp_from, "mtp_from_revision": mtp_from_revision}
        view = view_to_compare(against, revision, **head, artifact=artifact)
    elif mtp_from is not None:
        raise UsageProblem(
            "--mtp-from says whose head an artifact was given, and there is nothing to compare it with",
            hint="Name its source, too: --against MODEL.",
        )
    found = verify_all(
        artifact,
        view=view,
        options=verify_options_from(given),
        say=output.detail,
        title=output.title,
        measure=given["measure"],
        again=again,
    )
    several_json = {
        "artifacts": [report.to_json() for report in found.reports],
        "not_run": [{"artifact": name, "why": error.message} for name, error in found.refused],
    }
    output.document(found.reports[0].to_json() if is_one_artifact(artifact) else several_json)
    _show(output, found)
    found.check(allow_unverified=given["allow_unverified"])
    output.next("report", artifact if artifact.is_dir() else artifact.parent)


def _show(output: Output, found: Verified) -> None:
    from qexport.verification.table import COLUMNS, describe, rows

    for report in found.reports:
        for line in describe(report):
            output.text(line)
        for text in report.texts:
            output.say(f"> {text.strip()}")
    width = len(COLUMNS) - 2
    others = [[name, *[""] * width, f"not run: {error.message}"] for name, error in found.refused]
    output.table(COLUMNS, [*rows(found.reports), *others])
