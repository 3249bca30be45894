"""``qexport nvfp4``: 4-bit weights for vLLM, SGLang and TensorRT-LLM."""

from __future__ import annotations

from typing import Any

import click

from qexport.cli._export import export_format, folder_options, importance_option, source_options
from qexport.cli._options import SIZE, TYPES_FROM, aim_options, feedback_options


@click.command("nvfp4")
@source_options
@click.option(
    "--layout",
    type=click.Choice(["modelopt", "compressed-tensors"]),
    default="modelopt",
    show_default=True,
    help="modelopt: W4A16_NVFP4 with hf_quant_config.json; compressed-tensors: NVFP4A16. FP8 beside it: "
    "MIXED_PRECISION, mixed-precision.",
)
@click.option(
    "--scope",
    default="mlp",
    show_default=True,
    metavar="mlp|mlp+attention|all-linear|nvidia|REGEX",
    help="What is quantized in the language model's layers. nvidia: NVFP4 MLP and FP8 attention, as NVIDIA's "
    "own Qwen files. A regular expression is searched in published module paths.",
)
@aim_options
@click.option(
    "--scale-search",
    type=click.Choice(["max", "mse", "importance"]),
    default="max",
    show_default=True,
    help="How block scales are chosen: by the largest value as ModelOpt does, by the least error, or by the "
    "least error weighted by --importance (with --size and the like, that is the default).",
)
@importance_option("An importance matrix (qexport imatrix).")
@click.option("--keep-head", is_flag=True, help="Scope nvidia: leave lm_head as it is.")
@feedback_options
@TYPES_FROM
@click.option(
    "--max-shard-size", "max_shard", type=SIZE, metavar="SIZE", help="Largest file.  [default: 5 GiB]"
)
@folder_options
def command(**given: Any) -> None:
    """Write MODEL with its MLPs as NVFP4: 4 bits, a scale for 16 weights, activations as they are (W4A16).

    Matrices that runtimes fuse share one global scale: q, k and v; gate and up of every MLP and expert. The
    rest of the model, MTP head and vision tower stay as they are, and both configs say so.

    \b
    Examples:
      qexport nvfp4 ./merged --mtp-from Qwen/Qwen3.6-27B
      qexport nvfp4 ./merged --scale-search mse --scope mlp+attention
      qexport nvfp4 ./merged --like nvidia --importance imatrix.gguf_file
      qexport nvfp4 ./merged --layout compressed-tensors --runtime vllm --runtime-python ~/vllm/bin/python
    """
    export_format("nvfp4", given)
