"""``qexport nvfp4``: 4-bit weights for vLLM, SGLang and TensorRT-LLM."""

from __future__ import annotations

from typing import Any

import click

from qexport.cli._export import export_format, folder_options, importance_option, source_options
from qexport.cli._options import CORPUS, DEVICE, SIZE, TYPES_FROM, aim_options, feedback_options
from qexport.errors import UsageProblem
from qexport.formats.nvfp4.options import SCHEMES, W4A4


@click.command("nvfp4")
@source_options
@click.option(
    "--layout",
    type=click.Choice(["modelopt", "compressed-tensors"]),
    help="modelopt: W4A16_NVFP4 or NVFP4, with hf_quant_config.json; compressed-tensors: what llm-compressor "
    "writes. FP8 beside it: MIXED_PRECISION, mixed-precision.  "
    "[default: modelopt; compressed-tensors with --scheme]",
)
@click.option(
    "--scheme",
    type=click.Choice(list(SCHEMES)),
    help="NVFP4A16 (the default): activations as they are; NVFP4: W4A4, activations in 4 bits with a scale "
    "for each matrix, measured while a text goes through the model.",
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
@DEVICE
@CORPUS
@TYPES_FROM
@click.option(
    "--max-shard-size", "max_shard", type=SIZE, metavar="SIZE", help="Largest file.  [default: 5 GiB]"
)
@folder_options
def command(**given: Any) -> None:
    """Write MODEL with its MLPs as NVFP4: 4 bits, a scale for 16 weights. Activations stay as they are
    (W4A16), unless --scheme NVFP4 has them in 4 bits, too (W4A4).

    Matrices that runtimes fuse share one global scale: q, k and v; gate and up of every MLP and expert. The
    rest of the model, MTP head and vision tower stay as they are, and both configs say so.

    \b
    Examples:
      qexport nvfp4 ./merged --mtp-from Qwen/Qwen3.6-27B
      qexport nvfp4 ./merged --scale-search mse --scope mlp+attention
      qexport nvfp4 ./merged --like nvidia --importance imatrix.gguf_file
      qexport nvfp4 ./merged --layout compressed-tensors --runtime vllm --runtime-python ~/vllm/bin/python
      qexport nvfp4 ./merged --scheme NVFP4 --corpus mine.jsonl
      qexport nvfp4 ./merged --scheme NVFP4 --layout modelopt
    """
    if given["corpus"] is not None and given["feedback_text"] is not None:
        raise UsageProblem(
            "one text goes through the model while it is written", hint="Give --corpus or --feedback-text."
        )
    if given["corpus"] is not None and given["scheme"] != W4A4 and not given["feedback"]:
        raise UsageProblem(
            "nothing reads --corpus here", hint=f"It is the text of --scheme {W4A4} and of --feedback."
        )
    export_format("nvfp4", given)
