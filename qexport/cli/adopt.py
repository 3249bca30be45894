"""``qexport adopt``: the second half for a folder that somebody else quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import (
    CALIB_CHUNK,
    CORPUS,
    DRY_RUN,
    FILE,
    JSON,
    NO_VERIFY,
    OUT,
    THREADS,
    Whole,
    measure_option,
    runtime_options,
    twin_option,
    verify_options,
)
from qexport.cli._output import Output
from qexport.errors import UsageProblem
from qexport.sizes import size_text

if TYPE_CHECKING:
    from qexport.run.adopt import Adoption


@click.command("adopt")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--base", metavar="BASE", help="Whose MTP head and vision tower it takes: a folder or a Hub id."
)
@click.option("--base-revision", help="Branch, tag or commit of that BASE on the Hub.")
@click.option(
    "--mtp",
    type=click.Choice(["auto", "keep", "graft", "drop"]),
    default="auto",
    show_default=True,
    help="What becomes of the head: auto takes the base's where there is none, graft always.",
)
@OUT
@click.option("--link", is_flag=True, help="Hard links to its shards, not copies: they take no room.")
@click.option("--against", metavar="MODEL", help="The bf16 model that it was made from, to compare it with.")
@click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub.")
@click.option(
    "--engine",
    type=click.Choice(["llm-compressor", "modelopt"]),
    help="FOLDER is a bf16 model: this library quantizes it first, with text going through it.",
)
@click.option("--recipe", metavar="FILE", type=FILE, help="What llm-compressor is to do: its own YAML.")
@click.option(
    "--config", metavar="NAME", help="What ModelOpt is to do: a name of its own, such as NVFP4_DEFAULT_CFG."
)
@click.option("--engine-python", metavar="PATH", type=FILE, help="The Python that has the library.")
@CORPUS
@click.option(
    "--calib-tokens",
    type=Whole(2, 1 << 30),
    default=16384,
    show_default=True,
    metavar="TOKENS",
    help="How much text.",
)
@CALIB_CHUNK
@DRY_RUN
@verify_options
@measure_option
@runtime_options
@twin_option
@NO_VERIFY
@THREADS
@JSON
def command(folder: Path, out: Path | None, as_json: bool, **given: Any) -> None:
    """Make FOLDER, which another library quantized, whole, prove it, and give it a receipt.

    llm-compressor, ModelOpt, AutoAWQ, GPTQModel and AutoRound leave the MTP head behind, and loaders say
    nothing when modules are listed wrongly. A new folder gets FOLDER's shards as they are, the base's head
    and tower in a shard of their own, lists that every reader understands, and is verified as an export is.
    FOLDER is not touched.

    \b
    Examples:
      qexport adopt ./Tuned-W4A4 --base Qwen/Qwen3.5-9B --against ./merged
      qexport adopt ./Tuned-W4A4 --base Qwen/Qwen3.5-9B --link -o ./Tuned-NVFP4 --dry-run
      qexport adopt ./merged --engine llm-compressor --recipe w4a16-awq.yaml --base Qwen/Qwen3.5-9B
    """
    from qexport.run.adopt import Adoption

    if given["base_revision"] is not None and given["base"] is None:
        raise UsageProblem("--base-revision is of a --base, and none is named")
    output = Output(as_json=as_json)
    if given["engine"] is not None:
        _quantize_first(folder, out, output, given)
        return
    if given["recipe"] is not None or given["config"] is not None:
        raise UsageProblem(
            "--recipe and --config are for an --engine", hint="Name it: --engine llm-compressor."
        )
    wanted = Adoption(
        folder,
        out or folder.absolute().with_name(f"{folder.absolute().name}-adopted"),
        given["base"],
        given["base_revision"],
        link=given["link"],
        mtp=given["mtp"],
    )
    adopt(wanted, output, given)


def _quantize_first(folder: Path, out: Path | None, output: Output, given: dict[str, Any]) -> None:
    """FOLDER is the model; what the library makes of it is adopted, compared with it."""
    from qexport.recipe.choice import ModelChoice
    from qexport.run.adopt import Adoption
    from qexport.run.model import examine
    from qexport.run.quantizers import Quantizer, quantized_by

    wanted = Quantizer(
        given["engine"],
        given["recipe"],
        given["config"],
        given["engine_python"],
        given["corpus"],
        given["calib_tokens"],
        given["calib_chunk"],
    )
    if given["dry_run"]:
        raise UsageProblem(
            "what a library makes of a model is not known before it has", hint="Leave out --dry-run."
        )
    choice = ModelChoice(
        str(folder), mtp=given["mtp"], base=given["base"], base_revision=given["base_revision"]
    )
    target = out or folder.absolute().with_name(f"{folder.absolute().name}-{given['engine']}")
    with quantized_by(
        wanted, examine(choice, download=True), threads=given["threads"], say=output.say
    ) as made:
        quantized, whole, told = made
        adoption = Adoption(quantized, target, str(whole), link=False, mtp="auto", engine=told)
        adopt(adoption, output, {**given, "against": given["against"] or str(whole), "base": str(whole)})


def adopt(wanted: Adoption, output: Output, given: dict[str, Any]) -> None:
    """Say, write and prove; raises what :meth:`Verified.check` does."""
    from qexport.cli._export import verify_options_from
    from qexport.run.adopt import prove_adopted, write_adopted
    from qexport.run.verify import Verified, view_to_compare
    from qexport.verification.table import COLUMNS, describe, rows

    output.diagnosed(wanted.diagnosis)
    grafted = wanted.diagnosis.repaired.mtp_origin not in ("own", "none", "dropped")
    of_base = (wanted.base, wanted.base_revision) if grafted else (None, None)
    view = None
    if given["against"]:
        view = view_to_compare(
            given["against"], given["revision"], mtp_from=of_base[0], mtp_from_revision=of_base[1]
        )
    plan = wanted.planned.plan
    details = plan.details
    output.say(
        f"{plan.label}, {size_text(wanted.size)} ({size_text(wanted.new_bytes)} new), into {wanted.out}"
    )
    output.say(f"  MTP head: {details['mtp']['origin']}; vision tower: {details['vision']}")
    for note in plan.notes:
        output.say(f"  {note}")
    if details["listed"]:
        output.say(f"  newly listed as not quantized: {', '.join(details['listed'][:6])}")
    if given["dry_run"]:
        output.document(wanted.to_json())
        return
    entry = write_adopted(wanted, threads=given["threads"], say=output.detail)
    if given["no_verify"]:
        output.document({**wanted.to_json(), "verification": None})
        output.next("verify", wanted.out)
        return
    options = verify_options_from(given)
    report = prove_adopted(wanted, entry, view, options, measure=given["measure"], say=output.detail)
    output.document({**wanted.to_json(), "verification": report.to_json()})
    for line in describe(report):
        output.text(line)
    output.table(COLUMNS, rows((report,)))
    Verified((report,)).check(allow_unverified=given["allow_unverified"])
    output.next("push", wanted.out, f"you/{wanted.out.resolve().name}", "--dry-run")
