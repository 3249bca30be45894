"""``qexport gguf``: GGUF files, every type from one read, each proven by llama.cpp."""

from __future__ import annotations

from typing import Any

import click

from qexport.cli._export import BUILT_IN, export_format
from qexport.cli._options import (
    DRY_RUN,
    JSON,
    LIMIT,
    NO_VERIFY,
    OUT,
    OVERWRITE,
    THREADS,
    TYPES_FROM,
    aim_options,
    calibration_options,
    feedback_options,
    measure_option,
    model_argument,
    tower_options,
    verify_options,
)
from qexport.formats.gguf.options import FOLDERS, MTP_LAYOUTS


class _Pair(click.ParamType[tuple[str, str]]):
    """``REGEX=TYPE``."""

    name = "pair"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        pattern, _, name = str(value).rpartition("=")
        if not pattern or not name:
            self.fail(f"{value!r} is not REGEX=TYPE", param, ctx)
        return pattern, name


def _types(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    from qexport.formats.gguf.file_types import file_types

    return file_types(words)


@click.command("gguf")
@model_argument
@click.option(
    "-q",
    "--quant",
    "types",
    multiple=True,
    metavar="TYPE,...",
    callback=_types,
    help="File types, each a file from the same read: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, "
    "Q4_K_S, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K, Q2_K_S, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, IQ4_XS, IQ3_M, IQ3_S, "
    "IQ3_XS, IQ3_XXS, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S, NVFP4, MXFP4_MOE; or standard "
    "(Q4_K_M to Q8_0), small (Q2_K, Q3_K_M, IQ4_XS), wide (ten of them). Repeatable.",
)
@aim_options
@OUT
@tower_options
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
@feedback_options
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    type=_Pair(),
    metavar="REGEX=TYPE",
    help="Type for tensors whose GGUF name matches; the first match wins. Repeatable.",
)
@click.option("--output-tensor-type", "output_type", metavar="TYPE", help="Type for output.weight.")
@click.option("--token-embedding-type", "embedding_type", metavar="TYPE", help="Type for token_embd.weight.")
@TYPES_FROM
@click.option(
    "--mtp-layout",
    "mtp",
    type=click.Choice(list(MTP_LAYOUTS)),
    default="embedded",
    show_default=True,
    help="Where the MTP head goes: embedded among the model's tensors, or as drafter into a file of its own "
    "beside them (mtp-NAME-Q8_0.gguf), one for all types.",
)
@click.option(
    "--mtp-type",
    metavar="TYPE|mixture",
    help="Type for the MTP block; mixture is llama.cpp's own choice. Of a drafter the file's type.  "
    "[default: never below Q6_K; of a drafter Q8_0]",
)
@click.option("--pre-tokenizer", metavar="NAME", help="llama.cpp's name of the BPE pre-tokenizer.")
@click.option(
    "--split-max-size",
    type=LIMIT,
    metavar="SIZE",
    help="Largest shard, e.g. 2G or 500M; 0 for one file, however large.  [default: a file of more than "
    "50 GB is divided]",
)
@click.option(
    "--folders",
    type=click.Choice(list(FOLDERS)),
    default="split",
    show_default=True,
    help="Which files lie in a folder of their type (Q4_K_M/): those in several parts, all, or none.",
)
@click.option("--model-name", help="general.name, and the beginning of file names.")
@click.option(
    "--file-name",
    metavar="TEMPLATE",
    default="{name}-{type}",
    show_default=True,
    help="File names; what llama.cpp or the Hub would take for something else is changed.",
)
@click.option("--quantized-by", metavar="NAME", help="general.quantized_by.")
@click.option(
    "--mmproj",
    multiple=True,
    metavar="TYPE",
    help="Type of the vision tower, which llama.cpp reads from a file of its own (mmproj-BF16.gguf): F32, "
    "F16, BF16, Q8_0. Repeatable.  [default: BF16 where there is a tower]",
)
@click.option("--no-mmproj", is_flag=True, help="Leave the vision tower out: the files take text alone.")
@NO_VERIFY
@verify_options
@measure_option
@DRY_RUN
@THREADS
@OVERWRITE
@JSON
def command(**given: Any) -> None:
    """Write MODEL as GGUF files of one or more types, from a single read of its weights.

    Each file is then loaded by llama.cpp in a process of its own, generates text with and without its MTP
    head, and is compared with the source. A receipt (qexport.json) records it all. The exit code is 4 when
    a file fails.

    \b
    Examples:
      qexport gguf ./merged -q Q4_K_M,Q8_0 --mtp-from Qwen/Qwen3.5-9B
      qexport gguf ./merged -q standard --imatrix
      qexport gguf ./merged -q Q4_K_M --imatrix imatrix.gguf_file
      qexport gguf ./merged --like Q4_K_M -q Q8_0 --imatrix mine.jsonl
      qexport gguf org/model -q Q6_K --dry-run
    """
    export_format("gguf", given)
