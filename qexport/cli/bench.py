"""``qexport bench``: how fast an artifact is in the runtime that serves it, bare and with its MTP head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._export import chosen
from qexport.cli._options import JSON, LLAMA_SERVER, Finite, Whole, runtime_options
from qexport.cli._output import Output
from qexport.verification.bench import BenchOptions

if TYPE_CHECKING:
    from qexport.receipt.speeds import Range
    from qexport.run.bench import Timed


_COLUMNS = ("MTP", "tok/s", "slowest", "fastest", "times bare", "accepted", "prompt tok/s")
_ABSENT = "-"


@click.command("bench")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--n-max",
    type=Whole(0, 16),
    default=BenchOptions.n_max,
    show_default=True,
    help="The most tokens that the MTP head drafts at a time: every number from 1 on is measured. 0: "
    "without MTP only.",
)
@click.option("--prompt", "prompts", multiple=True, help="Prompt to answer instead of the built-in ones.")
@click.option(
    "--tokens",
    "n_predict",
    type=Whole(8, 4096),
    default=BenchOptions.n_predict,
    show_default=True,
    help="The most tokens of an answer.",
)
@click.option(
    "--repeats",
    type=Whole(1, 100),
    default=BenchOptions.repeats,
    show_default=True,
    help="Rounds over all prompts; the median counts.",
)
@click.option(
    "--prompt-tokens",
    type=Whole(8, 1 << 20),
    default=BenchOptions.prompt_tokens,
    show_default=True,
    help="Tokens of the prompt that reading is measured on.",
)
@click.option("--threads", type=Whole(1, 4096), help="Threads of the runtime.  [default: its own choice]")
@click.option(
    "--timeout",
    "time_limit",
    type=Finite(1, 1e7),
    default=BenchOptions.time_limit,
    show_default=True,
    help="Seconds for each setting, loading included.",
)
@LLAMA_SERVER
@runtime_options
@click.option("--no-receipt", is_flag=True, help="Leave the receipt beside the artifact as it is.")
@JSON
def command(artifact: Path, **given: Any) -> None:
    """Measure how many tokens a second ARTIFACT writes, bare and with its MTP head drafting 1 to N tokens.

    ARTIFACT is a .gguf file, run by llama.cpp, or a folder: MLX by mlx-lm (without MTP, which it does not
    run), FP8 and NVFP4 by the vLLM or SGLang that --runtime-python has; in a folder of several each is
    measured in turn. Greedy, one request at a time. The figures also go into the receipt beside the artifact,
    from which `qexport report` draws them.

    \b
    Examples:
      qexport bench Model-Q4_K_M.gguf
      qexport bench Model-Q4_K_M.gguf --llama-server ~/llama.cpp/build/bin/llama-server --n-max 6
      qexport bench Model-FP8 --runtime-python ~/vllm/bin/python
    """
    from qexport.run.bench import bench_all, check_timed
    from qexport.run.in_folder import is_one_artifact
    from qexport.verification.options import VerifyOptions

    output = Output(as_json=given["as_json"])
    options = BenchOptions(**chosen(BenchOptions, given))
    choice = VerifyOptions(
        llama_server=given["llama_server"],
        runtime=given["runtime"] or "",
        runtime_python=given["runtime_python"],
    )
    found: list[Timed] = []
    note = not given["no_receipt"]
    for each in bench_all(artifact, choice, options, say=output.say, title=output.title, note=note):
        found.append(each)
        _show(output, each)
    documents = [
        {"artifact": each.name, **each.bench.to_json(), "receipt": bool(each.noted)}
        for each in found
        if each.bench is not None
    ]
    output.document(documents[0] if is_one_artifact(artifact) else {"artifacts": documents})
    check_timed(found)
    output.next("report", artifact if artifact.is_dir() else artifact.parent)


def _show(output: Output, timed: Timed) -> None:
    if timed.error is not None:
        output.say(f"  {timed.error.message}")
    found = timed.bench
    if found is None:
        return
    bare = found.bare
    rows = [
        [
            f"n-max {speed.n_max}" if speed.n_max else "off",
            f"{speed.tok_s.median:.1f}",
            f"{speed.tok_s.low:.1f}",
            f"{speed.tok_s.high:.1f}",
            f"{speed.tok_s.median / bare.tok_s.median:.2f}" if bare is not None else _ABSENT,
            _ABSENT if speed.acceptance is None else f"{speed.acceptance:.0%}",
            _rate(speed.prompt_tok_s),
        ]
        for speed in found.speeds
    ]
    output.table(_COLUMNS, rows)
    output.text(found.way)
    output.text(
        f"{found.repeats} rounds of {found.prompts} prompts, answers of up to {found.n_predict} tokens; "
        f"reading measured on {found.prompt_tokens} tokens"
    )
    for line in found.notes:
        output.text(line)
    if timed.noted:
        output.say(f"Noted in {timed.noted} beside it.")
    elif timed.noted is not None:
        output.say("No receipt knows this artifact: the figures are noted nowhere.")


def _rate(value: Range | None) -> str:
    return _ABSENT if value is None else f"{value.median:.0f}"
