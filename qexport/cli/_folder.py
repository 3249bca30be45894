"""What ``qexport mlx``, ``fp8`` and ``nvfp4`` share: everything but their options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import (
    JSON,
    OUT,
    OVERWRITE,
    THREADS,
    measure_option,
    model_argument,
    mtp_options,
    runtime_options,
    verify_options,
)
from qexport.cli._output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.pipeline.folders import FolderOptions


def folder_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL, ``--out`` and everything about the head, verification and output."""
    for option in (
        JSON,
        OVERWRITE,
        THREADS,
        click.option(
            "--dry-run", is_flag=True, help="Print the plan: every tensor, exact sizes. Writes nothing."
        ),
        verify_options,
        measure_option,
        runtime_options,
        click.option("--no-verify", is_flag=True, help="Do not run the folder. The receipt says so."),
    ):
        function = option(function)
    return function


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL, its revision, ``--out``, and what becomes of the MTP head; they come first in the help."""
    for option in (mtp_options, OUT, model_argument):
        function = option(function)
    return function


def export_folder(asked: FolderOptions, given: dict[str, Any]) -> None:
    """Plan, write and prove one folder; the plan alone with ``--dry-run``."""
    from qexport.cli._export import check_items, write_and_prove
    from qexport.cli._report import say_findings, show_plans
    from qexport.cli._verify import verify_options_from
    from qexport.formats.gguf.file_name import model_stem
    from qexport.formats.registry import format_of
    from qexport.pipeline import export
    from qexport.pipeline.folders import FolderTarget
    from qexport.pipeline.model import ModelChoice, examine, fetched

    output = Output(as_json=given["as_json"])
    choice = ModelChoice(
        given["model"], given["revision"], given["mtp"], given["mtp_from"], given["mtp_from_revision"]
    )
    diagnosis = examine(choice, download=False)
    say_findings(output, diagnosis)
    stem = model_stem(diagnosis.subject.checkpoint.label)
    target = FolderTarget(
        asked,
        given["out"] or Path(format_of(asked).folder(asked).replace("{name}", stem)),
        verify=None if given["no_verify"] else verify_options_from(given),
    )
    if given["dry_run"]:
        items = export.plan([target], diagnosis)
        show_plans(output, [item.plan for item in items], target.out)
        return
    check_items([target], diagnosis, overwrite=given["overwrite"])
    diagnosis = fetched(choice, diagnosis)
    write_and_prove(
        output,
        export.plan([target], diagnosis),
        diagnosis,
        threads=given["threads"],
        overwrite=given["overwrite"],
        measure=0 if given["no_verify"] else given["measure"],
        allow_unverified=given["allow_unverified"],
    )


def matrix_from(path: Path | None) -> ImportanceMatrix | None:
    """The importance matrix in a file, if one was named."""
    from qexport.evidence.imatrix_file import read_imatrix

    return None if path is None else read_imatrix(path)
