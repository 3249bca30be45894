"""``qexport gguf``: GGUF files, every type from one read, each proven by llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import (
    JSON,
    OUT,
    OVERWRITE,
    SIZE,
    THREADS,
    TYPES_FROM,
    calibration_options,
    measure_option,
    model_argument,
    mtp_options,
    verify_options,
)
from qexport.cli._output import Output

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.gguf.options import GgufOptions
    from qexport.pipeline.gguf import GgufTarget
    from qexport.pipeline.model import ModelChoice


BUILT_IN = "the corpus inside the package"
"""What ``--imatrix`` alone stands for; no file has this name by accident."""


@click.command("gguf")
@model_argument
@click.option(
    "-q",
    "--quant",
    "types",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="File type: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_L, Q3_K_M, Q3_K_S, "
    "Q2_K, Q2_K_S, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, IQ4_XS. Repeat it for more files from the same read.",
)
@OUT
@mtp_options
@click.option(
    "--imatrix",
    is_flag=False,
    flag_value=BUILT_IN,
    metavar="[FILE]",
    help="Weigh rounding errors by how much each input column matters. FILE is an importance matrix (GGUF or "
    "legacy .dat), or a corpus to collect one from (text, JSON lines); alone, after MODEL, one is collected "
    "with the corpus inside the package.",
)
@calibration_options
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Type for tensors whose GGUF name matches; the first match wins. Repeatable.",
)
@click.option("--output-tensor-type", metavar="TYPE", help="Type for output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type for token_embd.weight.")
@TYPES_FROM
@click.option(
    "--mtp-type",
    metavar="TYPE|mixture",
    help="Type for the MTP block; mixture is llama.cpp's own choice.  [default: never below Q6_K]",
)
@click.option("--pre-tokenizer", metavar="NAME", help="llama.cpp's name of the BPE pre-tokenizer.")
@click.option("--split-max-size", type=SIZE, metavar="SIZE", help="Largest shard, e.g. 2G or 500M.")
@click.option("--model-name", help="general.name, and the beginning of file names.")
@click.option(
    "--file-name",
    metavar="TEMPLATE",
    default="{name}-{type}",
    show_default=True,
    help="File names; what llama.cpp or the Hub would take for something else is changed.",
)
@click.option("--quantized-by", metavar="NAME", help="general.quantized_by.")
@click.option("--no-verify", is_flag=True, help="Do not run the files. The receipt says so.")
@verify_options
@measure_option
@click.option("--dry-run", is_flag=True, help="Print the plan: every tensor, exact sizes. Writes nothing.")
@THREADS
@OVERWRITE
@JSON
def command(dry_run: bool, as_json: bool, **given: Any) -> None:
    """Write MODEL as GGUF files of one or more types, from a single read of its weights.

    Each file is then loaded by llama.cpp in a process of its own, generates text with and without its MTP
    head, and is compared with the source. A receipt (qexport.json) records it all. The exit code is 4 when
    a file fails.

    \b
    Examples:
      qexport gguf ./merged -q Q4_K_M -q Q8_0 --mtp-from Qwen/Qwen3.5-9B
      qexport gguf ./merged -q Q4_K_M -q Q5_K_M -q Q6_K -q Q8_0 --imatrix
      qexport gguf ./merged -q Q4_K_M --imatrix imatrix.gguf_file
      qexport gguf org/model -q Q6_K --dry-run
    """
    from qexport.cli._calibrate import calibration_job
    from qexport.cli._export import write_and_prove
    from qexport.cli._report import say_findings, show_plans
    from qexport.pipeline import export
    from qexport.pipeline.calibrate import imatrix_name, prepare
    from qexport.pipeline.gguf import matrix_plan, uses_matrix, without_matrix
    from qexport.pipeline.model import ModelChoice, examine

    output = Output(as_json=as_json)
    choice = ModelChoice(
        given["model"], given["revision"], given["mtp"], given["mtp_from"], given["mtp_from_revision"]
    )
    options, corpus = _options(given)
    diagnosis = examine(choice, download=False)
    say_findings(output, diagnosis)
    target = _target(options, given, diagnosis)
    if corpus is not None:
        view = diagnosis.repaired.view()
        calibration = calibration_job(given, None if corpus == BUILT_IN else Path(corpus))
        target = target.expecting(prepare(calibration, view, imatrix_name(view, options.model_name)), view)
    items = export.plan([target], diagnosis)
    if target.calibration is not None and not uses_matrix([item.plan for item in items]):
        output.say("none of these types uses an importance matrix; none is collected")
        target = without_matrix(target)
        items = export.plan([target], diagnosis)
    if dry_run:
        show_plans(output, [*matrix_plan(target), *(item.plan for item in items)], target.out)
        return
    diagnosis, target = _with_matrix(output, choice, diagnosis, target, overwrite=given["overwrite"])
    write_and_prove(
        output,
        export.plan([target], diagnosis),
        diagnosis,
        threads=given["threads"],
        overwrite=given["overwrite"],
        measure=0 if given["no_verify"] else given["measure"],
        allow_unverified=given["allow_unverified"],
    )


def _with_matrix(
    output: Output, choice: ModelChoice, diagnosis: Diagnosis, target: GgufTarget, *, overwrite: bool
) -> tuple[Diagnosis, GgufTarget]:
    """Everything fetched, and the matrix collected where one is wanted and not there yet."""
    from qexport.cli._calibrate import run_calibration
    from qexport.cli._export import check_items
    from qexport.pipeline.gguf import matrix_plan, matrix_there, write_matrix
    from qexport.pipeline.model import fetched

    if target.calibration is None:
        check_items([target], diagnosis, overwrite=overwrite)
        return fetched(choice, diagnosis), target
    diagnosis = fetched(choice, diagnosis)
    there = None if overwrite else matrix_there(target, diagnosis)
    if there is not None:
        output.say(f"importance matrix: {target.calibration.label} is there, from the same weights and text")
        return diagnosis, target.having(there)
    check_items([target], diagnosis, overwrite=overwrite, beside={target.out: matrix_plan(target)})
    target = target.having(run_calibration(output, target.calibration, diagnosis.repaired.view()))
    for note in write_matrix(target, diagnosis, output.say):
        output.say(f"  {note}")
    return diagnosis, target


def _options(given: dict[str, Any]) -> tuple[GgufOptions, str | None]:
    """Options into a value, and the corpus of a matrix to collect; what is wrong with them is found here."""
    from qexport.evidence.imatrix_file import read_imatrix
    from qexport.evidence.kinds import kind_of
    from qexport.formats.gguf.options import GgufOptions

    source: str | None = given["imatrix"]
    corpus = source if source == BUILT_IN or (source and kind_of(Path(source)) == "corpus") else None
    options = GgufOptions(
        tensor_types=tuple(_pair(text) for text in given["tensor_types"]),
        output_type=given["output_tensor_type"],
        embedding_type=given["token_embedding_type"],
        mtp_type=given["mtp_type"],
        imatrix=read_imatrix(Path(source)) if source and corpus is None else None,
        pre_tokenizer=given["pre_tokenizer"],
        split_max_size=given["split_max_size"],
        model_name=given["model_name"],
        file_name=given["file_name"],
        quantized_by=given["quantized_by"],
        types_from=given["types_from"],
    )
    return options, corpus


def _target(options: GgufOptions, given: dict[str, Any], diagnosis: Diagnosis) -> GgufTarget:
    from qexport.cli._verify import verify_options_from
    from qexport.formats.gguf.file_name import model_stem
    from qexport.pipeline.gguf import GgufTarget

    return GgufTarget(
        types=given["types"],
        out=given["out"] or Path(f"{model_stem(diagnosis.subject.checkpoint.label)}-GGUF"),
        asked=options,
        verify=None if given["no_verify"] else verify_options_from(given),
    )


def _pair(text: str) -> tuple[str, str]:
    pattern, _, name = text.rpartition("=")
    if not pattern or not name:
        raise click.BadParameter(f"{text!r} is not REGEX=TYPE", param_hint="--tensor-type")
    return pattern, name
