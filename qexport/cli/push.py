"""``qexport push``: what was exported, onto the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from qexport.cli._options import JSON, Finite, Whole
from qexport.cli._output import Gathered, Output
from qexport.cli._recipe import RECIPE, SET
from qexport.errors import UsageProblem


@click.command("push")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo", required=False)
@click.option(
    "--recipe",
    metavar="RECIPE",
    type=RECIPE,
    help="Instead of REPO: DIR is what `qexport run RECIPE -o DIR` wrote, and each of its folders goes where "
    "the recipe's publish: says, with the card that it describes.",
)
@SET
@click.option("--dry-run", is_flag=True, help="Show the files, their hashes and the card. Sends nothing.")
@click.option(
    "--public", is_flag=True, help="Make the repository public in the end; all of it must be verified."
)
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Push what nothing has run, or compared with its source; the card says so.",
)
@click.option("--allow-failed", is_flag=True, help="Push what has failed, too; the card says so.")
@click.option(
    "--only",
    metavar="LABEL",
    multiple=True,
    help="Push this artifact only, such as Q4_K_M; with --recipe what `qexport run` takes.",
)
@click.option(
    "--include", metavar="NAME", multiple=True, help="Push a file that no receipt knows (*.png works, too)."
)
@click.option("--branch", "--revision", metavar="NAME", help="Branch to commit to; made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option(
    "--ollama",
    is_flag=True,
    help="Send along, as Ollama reads it (params), what the model's own settings recommend for sampling.",
)
@click.option(
    "--presets",
    is_flag=True,
    help="Send along a models.ini: llama-server --models-preset serves every GGUF file from it, with its MTP "
    "head drafting.",
)
@click.option(
    "--collection",
    metavar="TITLE",
    help="Add the repository to this collection of its owner, made (private) where there is none; or the "
    "slug of one that is there.",
)
@click.option("-m", "--message", help="Message of the commit.")
@click.option("--base-model", metavar="ID", help="Hub id of the exported model, for the card.")
@click.option("--quantized-by", metavar="NAME", help="Whom the card names.  [default: REPO's owner]")
@click.option("--replace-card", is_flag=True, help="Replace a README.md that qexport did not write.")
@click.option(
    "--rehash",
    is_flag=True,
    help="With --dry-run, too, read every file and compare it with its receipt, as a push does.",
)
@click.option("--workers", type=Whole(1, 32), default=5, show_default=True, help="Files sent at a time.")
@click.option(
    "--timeout",
    type=Finite(0, 1e7, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds without an answer before a request is made again.",
)
@JSON
def command(
    folder: Path,
    repo: str | None,
    recipe: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Publish the artifacts in DIR as the model repository REPO (org/name), in one commit.

    The model card, SHA256SUMS and the receipt are made from DIR's qexport.json. A new repository is private.
    The access token is the Hub client's own (`hf auth login` or HF_TOKEN). An upload that was cut off goes on
    when the command is run again.

    \b
    Examples:
      qexport push ./merged-GGUF alice/Merged-GGUF --dry-run
      qexport push ./merged-GGUF alice/Merged-GGUF --base-model alice/Merged
      qexport push ./merged-GGUF alice/Merged-GGUF --only Q4_K_M --public
      qexport push ./exports --recipe qwen3.5-9b --only gguf
    """
    from qexport.publishing.plan import PushOptions
    from qexport.run.job import publish, publish_all
    from qexport.run.outcome import refusal

    output = Output(as_json=as_json)
    if (repo is None) == (recipe is None):
        raise UsageProblem("push takes a repository (org/name) or --recipe RECIPE", hint="One of the two.")
    if repo is not None:
        publish(PushOptions(folder, repo, **given), output, rehearsal=dry_run)
        return
    assert recipe is not None
    from qexport.recipe.load import load_recipe
    from qexport.recipe.publication import pushes
    from qexport.recipe.select import select

    loaded = load_recipe(recipe, overrides)
    every = pushes(loaded, select(loaded, given.pop("only")), folder)
    # What was said here outranks the recipe; what was not stays as the recipe has it.
    said = {name: value for name, value in given.items() if value not in (None, False, ())}
    gathered = Gathered(output)
    _, refused = publish_all([replace(each, **said) for each in every], gathered, rehearsal=dry_run)
    output.document(gathered.documents)
    if (error := refusal(refused)) is not None:
        raise error
