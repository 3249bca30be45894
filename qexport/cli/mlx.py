"""``qexport mlx``: an MLX folder, the head beside it."""

from __future__ import annotations

from typing import Any

import click

from qexport.cli._export import export_format, folder_options, importance_option, source_options
from qexport.cli._options import SIZE, TYPES_FROM, aim_options, feedback_options
from qexport.formats.mlx.options import (
    AFFINE_BITS,
    AFFINE_GROUPS,
    DTYPES,
    MODES,
    MTP_LAYOUTS,
    RECIPES,
)


@click.command("mlx")
@source_options
@click.option("--bits", type=click.Choice(AFFINE_BITS), help="Bits of a weight.  [default: 4, as mlx-lm]")
@click.option(
    "--group-size", type=click.Choice(AFFINE_GROUPS), help="Weights that share a scale.  [default: 64]"
)
@click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="affine",
    show_default=True,
    help="How weights are coded.",
)
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="Two widths: the larger one for lm_head and for v_proj and down_proj of some layers.",
)
@aim_options
@click.option(
    "--text-only",
    is_flag=True,
    help="Leave the vision tower out, as mlx-lm does: the folder takes text alone.",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of scales and of what is not quantized.")
@click.option(
    "--mtp-layout",
    "mtp",
    type=click.Choice(list(MTP_LAYOUTS)),
    multiple=True,
    default=("drafter",),
    show_default=True,
    help="Where the MTP head goes: a folder beside (mlx-vlm and others), files of MTPLX or vllm-mlx inside, "
    "embedded among the model's tensors (oMLX), or nowhere. Repeatable.",
)
@click.option(
    "--mtp-bits", type=click.Choice(AFFINE_BITS), help="Quantize the head's matrices.  [default: not]"
)
@importance_option(
    "Fit scales and biases to an importance matrix (qexport imatrix); the layout does not change."
)
@feedback_options
@TYPES_FROM
@click.option("--max-shard-size", type=SIZE, metavar="SIZE", help="Largest file.  [default: 5 GiB]")
@folder_options
def command(**given: Any) -> None:
    """Write MODEL as an MLX folder, streamed tensor by tensor; no MLX and no Mac are needed.

    Tensors are those of mlx_lm convert, byte for byte, and of a model with a vision tower those of
    mlx_vlm convert: both programs read the folder. The MTP head, which they drop, goes into a folder of its
    own beside it (NAME-MTP) unless told otherwise. mlx-lm then loads the folder and answers.

    \b
    Examples:
      qexport mlx ./merged --bits 6
      qexport mlx ./merged --bits 4 --importance imatrix.gguf_file --mtp-from Qwen/Qwen3.5-9B
      qexport mlx ./merged --mode mxfp4 --mtp-layout mtplx -o ./merged-mxfp4
      qexport mlx ./merged --like 6bit --importance imatrix.gguf_file
    """
    given["mtp"] = tuple(dict.fromkeys(given["mtp"]))
    export_format("mlx", given)
