"""``qexport fp8``: block-wise FP8 as the official Qwen repositories have it."""

from __future__ import annotations

from typing import Any

import click

from qexport.cli._export import export_format, folder_options, source_options
from qexport.cli._options import SIZE, TYPES_FROM
from qexport.formats.fp8.options import LAYOUTS, SCHEMES


@click.command("fp8")
@source_options
@click.option(
    "--layout",
    type=click.Choice(list(LAYOUTS)),
    help="native: quant_method fp8 and weight_scale_inv; compressed-tensors: what llm-compressor writes.  "
    "[default: native; compressed-tensors with --scheme]",
)
@click.option(
    "--scheme",
    type=click.Choice(list(SCHEMES)),
    help="Of compressed-tensors. FP8_BLOCK (the default there): tiles of 128 by 128; FP8_DYNAMIC: a scale "
    "for each row, activations per token, matrices of any size.",
)
@click.option(
    "--mtp-bf16",
    is_flag=True,
    help="Leave the MTP layer as it is, and list all of it; compressed-tensors always does.",
)
@TYPES_FROM
@click.option(
    "--max-shard-size", "max_shard", type=SIZE, metavar="SIZE", help="Largest file.  [default: 5 GiB]"
)
@folder_options
def command(**given: Any) -> None:
    """Write MODEL with its linear layers as FP8 (E4M3) in blocks of 128 by 128, or with a scale for each row.

    Experts are stored one by one, the MTP layer in FP8 with its fc as it is, and all that is not converted is
    listed by full path, as vLLM and SGLang need it. Matrices that blocks do not fit stay as they are.

    \b
    Examples:
      qexport fp8 ./merged --mtp-from Qwen/Qwen3.6-27B
      qexport fp8 ./merged --layout compressed-tensors
      qexport fp8 ./merged --scheme FP8_DYNAMIC
      qexport fp8 ./merged --runtime vllm --runtime-python ~/vllm/bin/python
    """
    export_format("fp8", given)
