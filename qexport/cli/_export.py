"""What the commands share that write one format: options named as fields become a recipe, which is run.

An option of a format is a field of its class, and its parameter is called like the field. So such a command
is a list of options and a docstring.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import (
    DRY_RUN,
    FILE,
    JSON,
    NO_VERIFY,
    OUT,
    OVERWRITE,
    THREADS,
    measure_option,
    model_argument,
    runtime_options,
    together,
    tower_options,
    twin_option,
    verify_options,
)
from qexport.cli._output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.recipe import Calibration, Recipe
    from qexport.run.local import Local
    from qexport.verification.options import VerifyOptions


BUILT_IN = "the corpus inside the package"
"""What ``--imatrix`` alone stands for; no file has this name by accident."""
_VERIFY = (
    "prompts",
    "n_predict",
    "draft_max",
    "time_limit",
    "llama_server",
    "runtime",
    "runtime_python",
    "twin",
)


source_options = together(tower_options, OUT, model_argument)
"""MODEL, its revision, ``--out``, and what becomes of the MTP head; they come first in the help."""


folder_options = together(
    JSON,
    OVERWRITE,
    THREADS,
    DRY_RUN,
    verify_options,
    measure_option,
    runtime_options,
    twin_option,
    NO_VERIFY,
)
"""Everything about verification and output."""


def importance_option(words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--importance FILE``; ``words`` say what for."""
    return click.option(
        "--importance",
        metavar="FILE",
        type=FILE,
        help=words,
    )


def chosen(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """What was given of a class's fields; what was not keeps its default."""
    named = (each.name for each in fields(cls))
    return {name: given[name] for name in named if given.get(name) not in (None, ())}


def verify_options_from(given: dict[str, Any]) -> VerifyOptions:
    """Options that were given replace the defaults; the rest stay."""
    from qexport.verification.options import VerifyOptions

    said = {name: given[name] for name in _VERIFY if given.get(name) not in (None, ())}
    return replace(VerifyOptions(), **said, threads=given.get("threads") or 0)


def model_choice(given: dict[str, Any]) -> ModelChoice:
    """MODEL, its head and its tower."""
    from qexport.recipe.choice import ModelChoice

    modes = {"mtp": given["mtp_mode"], "vision": given["vision_mode"]}
    named = (each.name for each in fields(ModelChoice) if each.name not in modes)
    return ModelChoice(**modes, **{name: given[name] for name in named if name in given})


def source_words(given: dict[str, Any]) -> list[str]:
    """MODEL and what was said of its head and tower to this command, as another one takes it."""
    from qexport.recipe.choice import ModelChoice

    names = {*(each.name for each in fields(ModelChoice)), "mtp_mode", "vision_mode"} - {"model"}
    options = click.get_current_context().command.params
    flags = {str(option.name): option.opts[0] for option in options if option.name in names}
    said = {flag: given[name] for name, flag in flags.items() if given[name] not in (None, "auto")}
    return [given["model"], *(word for pair in said.items() for word in pair)]


def calibration_from(given: dict[str, Any], corpus: Path | None, merge: tuple[Path, ...] = ()) -> Calibration:
    """What ``--calib-tokens`` and the like say of a matrix to collect."""
    from qexport.recipe.recipe import Calibration

    amounts = (given["calib_tokens"], given["calib_chunk"], given["calib_seed"])
    back = {name: given[name] for name in ("sensitivity", "sensitivity_tokens")} | _text(given)
    return Calibration(corpus, *amounts, precision=given["precision"], merge=merge, **back)


def _text(given: dict[str, Any]) -> dict[str, Any]:
    """What is said of texts besides the corpus of a matrix, by commands that know any; ``--corpus`` is the
    text that goes along with the writing."""
    names = ("feedback_text", "feedback_tokens", "heldout")
    found: dict[str, Any] = {name: given[name] for name in names if name in given}
    if found.get("feedback_text", "") is None:
        found["feedback_text"] = given.get("corpus")
    return found


def export_format(
    word: str, given: dict[str, Any], output: Output | None = None, folder: str | None = None
) -> None:
    """Write and prove one format of MODEL; with ``--dry-run`` the plan alone is shown.

    Args:
        word: the format's.
        given: parameters of the command; those of the format are called like its fields.
        output: who watches.
        folder: template of the default folder's name; the format's own if not given.

    Raises:
        VerificationError: an artifact failed; the files stay, and the receipt says so.
        Unproven: nothing is wrong with them, and one is not proven.
    """
    from qexport.evidence.options import StreamOptions
    from qexport.formats.registry import FORMATS
    from qexport.recipe.recipe import AskedArtifact, Recipe, RecipeModel, apart
    from qexport.run.job import run
    from qexport.run.local import Local

    output = output or Output(as_json=given["as_json"])
    kind = FORMATS[word]
    calibration = _calibration(given, kind.matrix)
    options = kind.options(**chosen(kind.options, given))
    kind.check(options)
    verify = None if given.get("no_verify", True) else verify_options_from(given)
    place = "." if given["out"] is not None else folder or kind.folder(options)
    recipe = Recipe(
        subjects=(RecipeModel("model", model_choice(given)),),
        artifacts=tuple(
            AskedArtifact(name, each, place, verify) for name, each in apart(word, options).items()
        ),
        calibration=calibration,
        measure=given.get("measure", 0),
    )
    local = Local(
        out=given["out"],
        stream=StreamOptions(**chosen(StreamOptions, given)),
        threads=given["threads"],
        overwrite=given["overwrite"],
        allow_unverified=given.get("allow_unverified", False),
    )
    if given["dry_run"]:
        _rehearse(output, recipe, local)
    else:
        outcome = run(recipe, local, output)
        outcome.raise_problem()
        _next(output, word, outcome.artifacts[0].folder, proven=verify is not None)


def _calibration(given: dict[str, Any], field: str | None) -> Calibration | None:
    """Where the matrix comes from: a file, a corpus where the command can collect, or neither."""
    from qexport.evidence.kinds import kind_of
    from qexport.formats.format import CALIBRATED
    from qexport.recipe.recipe import Calibration

    source = None if field is None else given[field]
    if source is None and given.get("quality") == "best" and "calib_tokens" in given:
        source = BUILT_IN
    if field is None or source is None:
        return Calibration(**_text(given)) if "corpus" in given else None
    given[field] = CALIBRATED
    if source == BUILT_IN:
        return calibration_from(given, None)
    path = Path(source)
    if "calib_tokens" in given and kind_of(path) == "corpus":
        return calibration_from(given, path)
    return replace(Calibration(imatrix=path), **_text(given))


def _next(output: Output, word: str, folder: Path, *, proven: bool) -> None:
    """What comes after an export: a checkpoint is exported, an artifact proven, then published."""
    if word == "merged":
        output.next("gguf", folder, "-q", "standard", "--imatrix")
    elif not proven:
        output.next("verify", folder)
    else:
        output.next("push", folder, f"you/{folder.resolve().name}", "--dry-run")


def _rehearse(output: Output, recipe: Recipe, local: Local) -> None:
    from qexport.cli._report import show_plans
    from qexport.recipe.select import units_of
    from qexport.run.job import foreseen, plan_model

    work = foreseen(plan_model(recipe, recipe.subjects[0], units_of(recipe), local, output), output)
    plans = [*work.matrix_plans(), *(item.plan for item in work.items)]
    show_plans(output, plans, work.items[0].target.out)
