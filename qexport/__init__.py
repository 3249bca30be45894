"""qexport: one pass over a merged checkpoint writes every format its users run, each proven to run.

>>> import qexport
>>> outcome = qexport.export(
...     "./merged",
...     [qexport.Gguf(("Q4_K_M", "Q8_0")), qexport.Mlx(bits=6)],
...     mtp_from="Qwen/Qwen3.5-9B",
...     out="exports",
... )  # doctest: +SKIP
>>> [(item.name, item.state) for item in outcome.artifacts]  # doctest: +SKIP
[('merged-Q4_K_M.gguf', 'passed'), ('merged-Q8_0.gguf', 'passed'), ('merged-MLX-6bit', 'passed'), ...]

The command line does no more than call what is here, and docs/python.md shows how. Importing qexport loads
neither torch nor anything else that is heavy: names are looked up, and functions import, when they are used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.doctor.explain import Explanation
    from qexport.doctor.mtp import MtpMode
    from qexport.doctor.vision import VisionMode
    from qexport.errors import (
        EnvironmentProblem,
        GateRefusal,
        InputError,
        QexportError,
        Unproven,
        UsageProblem,
        VerificationError,
    )
    from qexport.formats.format import CALIBRATED
    from qexport.formats.fp8.options import Fp8Options as Fp8
    from qexport.formats.gguf.options import GgufOptions as Gguf
    from qexport.formats.merged.format import MergedOptions as Merged
    from qexport.formats.mlx.options import MlxOptions as Mlx
    from qexport.formats.nvfp4.options import Nvfp4Options as Nvfp4
    from qexport.publishing.push import Pushed, Rehearsal
    from qexport.receipt.verification import Verification
    from qexport.recipe.recipe import Calibration, Recipe
    from qexport.run.local import Local
    from qexport.run.outcome import Outcome
    from qexport.run.target import Item
    from qexport.run.watcher import Phase, Watcher
    from qexport.verification.options import VerifyOptions

__version__ = "0.1.0"

__all__ = [
    "CALIBRATED",
    "Calibration",
    "EnvironmentProblem",
    "Fp8",
    "GateRefusal",
    "Gguf",
    "InputError",
    "Item",
    "Local",
    "Merged",
    "Mlx",
    "Nvfp4",
    "Outcome",
    "Phase",
    "QexportError",
    "Recipe",
    "Unproven",
    "UsageProblem",
    "VerificationError",
    "VerifyOptions",
    "Watcher",
    "__version__",
    "export",
    "inspect",
    "plan",
    "publish",
    "recipe_for",
    "verify",
]

_ERRORS = "errors"
_AT = {
    "CALIBRATED": ("formats.format", "CALIBRATED"),
    "Calibration": ("recipe.recipe", "Calibration"),
    "EnvironmentProblem": (_ERRORS, "EnvironmentProblem"),
    "Fp8": ("formats.fp8.options", "Fp8Options"),
    "GateRefusal": (_ERRORS, "GateRefusal"),
    "Gguf": ("formats.gguf.options", "GgufOptions"),
    "InputError": (_ERRORS, "InputError"),
    "Item": ("run.target", "Item"),
    "Local": ("run.job", "Local"),
    "Merged": ("formats.merged.format", "MergedOptions"),
    "Mlx": ("formats.mlx.options", "MlxOptions"),
    "Nvfp4": ("formats.nvfp4.options", "Nvfp4Options"),
    "Outcome": ("run.outcome", "Outcome"),
    "Phase": ("run.watcher", "Phase"),
    "QexportError": (_ERRORS, "QexportError"),
    "Recipe": ("recipe.recipe", "Recipe"),
    "Unproven": (_ERRORS, "Unproven"),
    "UsageProblem": (_ERRORS, "UsageProblem"),
    "VerificationError": (_ERRORS, "VerificationError"),
    "VerifyOptions": ("verification.options", "VerifyOptions"),
    "Watcher": ("run.watcher", "Watcher"),
}
"""Where the classes are, which are imported when somebody asks for them."""


def export(
    what: Recipe | str | Path,
    formats: Sequence[Any] = (),
    *,
    mtp_from: str | None = None,
    base: str | None = None,
    calibration: Calibration | None = None,
    out: str | Path = ".",
    only: Sequence[str] = (),
    local: Local | None = None,
    watcher: Watcher | None = None,
    check: bool = True,
) -> Outcome:
    """Write every format from one read of the model, prove what was written, and put it into receipts.

    A run that was stopped goes on when it is called again; what is there already, from the same source and
    settings, is not made again.

    Args:
        what: with ``formats`` a model, a folder or a Hub id; without, a recipe: a value, a file, or the name
            of one that comes with qexport.
        formats: options: :class:`Gguf`, :class:`Mlx`, :class:`Fp8`, :class:`Nvfp4`, :class:`Merged`.
        mtp_from, base, calibration: as :func:`recipe_for` takes them, which takes more.
        out: the folder that the artifacts' folders are made in, named after the model and the format.
        only: of a recipe, these artifacts, as ``qexport run --only`` names them.
        local: what belongs to this machine: threads, devices, runtimes; its ``out`` outranks the other.
        watcher: is told of everything on the way; nobody is by default.
        check: raise what the command would have ended with; otherwise it is ``Outcome.problem``.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: what is in the way, before the first byte where it can
            be known by then.
        VerificationError: an artifact does not do what it promises. The files and the receipts are there.
        Unproven: nothing is wrong with them, and no runtime here could run one, or compare it.
        GateRefusal: one does not keep a limit of its recipe.
    """
    from dataclasses import replace

    from qexport.recipe.select import select
    from qexport.run.job import run
    from qexport.run.local import Local

    recipe = _recipe(what, formats, mtp_from, base, calibration)
    local = local or Local()
    local = local if local.out is not None else replace(local, out=Path(out))
    outcome = run(recipe, local, watcher, select(recipe, only))
    if check:
        outcome.raise_problem()
    return outcome


def plan(
    what: Recipe | str | Path,
    formats: Sequence[Any] = (),
    *,
    mtp_from: str | None = None,
    base: str | None = None,
    calibration: Calibration | None = None,
    out: str | Path = ".",
    only: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> list[Item]:
    """What :func:`export` would write, to the byte: headers are read, no weights; nothing is written.

    Each item has its ``folder`` and a ``plan`` with files, sizes, and every tensor's type and place.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: what is in the way.
    """
    from qexport.recipe.select import select
    from qexport.run.job import plan_model
    from qexport.run.local import Local
    from qexport.run.watcher import Watcher

    recipe = _recipe(what, formats, mtp_from, base, calibration)
    units = select(recipe, only)
    watcher, local = watcher or Watcher(), Local(out=Path(out))
    mine = {each: tuple(u for u in units if u.subject == each.key) for each in recipe.subjects}
    works = [plan_model(recipe, each, some, local, watcher) for each, some in mine.items() if some]
    return [item for work in works for item in work.items]


def recipe_for(
    model: str | Path,
    formats: Sequence[Any],
    *,
    revision: str | None = None,
    name: str | None = None,
    mtp: MtpMode = "auto",
    mtp_from: str | None = None,
    mtp_from_revision: str | None = None,
    vision: VisionMode = "auto",
    vision_from: str | None = None,
    vision_from_revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    calibration: Calibration | None = None,
    verification: VerifyOptions | None = None,
    proven: bool = True,
    measure: int = 2048,
) -> Recipe:
    """A recipe without a file: these formats of this model.

    Args:
        model: a folder or a Hub id; ``revision`` only for the latter.
        formats: options. :data:`CALIBRATED` in a field for an importance matrix stands for the one that
            ``calibration`` collects, or names; GGUF files have it wherever there is a calibration.
        name: what files and folders are called; the model's own name when not given.
        mtp: what becomes of the MTP head: ``auto``, ``keep``, ``graft`` or ``drop``.
        mtp_from: the base whose head is grafted: a folder or a Hub id.
        vision, vision_from: likewise for the vision tower; its base is the head's where none is named.
        base: the base for both.
        verification: how artifacts are proven; ``proven=False`` for not at all, and the receipts say so.
        measure: held-out tokens on which artifacts are compared with the source; 0 for none.
    """
    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.recipe import Recipe, RecipeModel, artifacts_of
    from qexport.verification.options import VerifyOptions

    choice = ModelChoice(
        str(model),
        revision,
        mtp,
        mtp_from,
        mtp_from_revision,
        vision,
        vision_from,
        vision_from_revision,
        base,
        base_revision,
    )
    how = verification or VerifyOptions() if proven else None
    artifacts = artifacts_of(formats, calibrated=calibration is not None, verify=how)
    return Recipe((RecipeModel("model", choice, name),), artifacts, calibration, measure=measure)


def inspect(
    model: str | Path,
    *,
    revision: str | None = None,
    mtp: MtpMode = "auto",
    mtp_from: str | None = None,
    mtp_from_revision: str | None = None,
    **towers: Any,
) -> Explanation:
    """What a checkpoint is, and what is wrong with it; headers and small files are enough.

    ``findings`` say each whom it would hurt, with which error, and what an export does about it.

    Args:
        towers: ``vision``, ``vision_from``, ``base`` and their revisions, as :func:`recipe_for` takes them.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: the model cannot be opened.
    """
    from qexport.doctor.explain import explain
    from qexport.recipe.choice import ModelChoice
    from qexport.run.model import examine

    choice = ModelChoice(str(model), revision, mtp, mtp_from, mtp_from_revision, **towers)
    return explain(examine(choice, download=False))


def verify(
    artifact: str | Path,
    *,
    against: str | Path | None = None,
    revision: str | None = None,
    mtp_from: str | Path | None = None,
    mtp_from_revision: str | None = None,
    options: VerifyOptions | None = None,
    measure: int = 2048,
    watcher: Watcher | None = None,
) -> Verification:
    """Load a GGUF file or a folder in a runtime that its users use, let it write, and judge it.

    Args:
        against: the source it is compared with: a folder or a Hub id (and its ``revision``).
        mtp_from: the model whose MTP head it was given, where that is not the source's own.
        measure: held-out tokens on which it is compared, layer by layer; 0 for none.

    Returns:
        its ``state``, ``findings`` and ``measures``. What failed raises nothing.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: it cannot be judged.
    """
    from qexport.run.verify import verify_artifact, view_to_compare
    from qexport.run.watcher import Watcher
    from qexport.verification.options import VerifyOptions

    view = None
    if against is not None:
        base = None if mtp_from is None else str(mtp_from)
        view = view_to_compare(
            str(against),
            revision,
            mtp_from=base,
            mtp_from_revision=mtp_from_revision,
            artifact=Path(artifact),
        )
    say = (watcher or Watcher()).say
    return verify_artifact(
        Path(artifact), view=view, options=options or VerifyOptions(), say=say, measure=measure
    )


def publish(
    folder: str | Path,
    repo: str,
    *,
    dry_run: bool = False,
    watcher: Watcher | None = None,
    **options: Any,
) -> Pushed | Rehearsal:
    """Publish what an export wrote in ``folder`` as the model repository ``repo``, in one commit.

    Args:
        repo: ``org/name``; a new repository is private.
        dry_run: plan it, and send nothing.
        options: fields of :class:`qexport.publishing.plan.PushOptions`: ``public``, ``only`` ...

    Raises:
        VerificationError, Unproven: something in it has failed, or is not proven.
        InputError, UsageProblem, EnvironmentProblem: the folder, the Hub, the network, the token.
    """
    from qexport.publishing.plan import PushOptions
    from qexport.run.job import publish as push
    from qexport.run.watcher import Watcher

    return push(PushOptions(Path(folder), repo, **options), watcher or Watcher(), rehearsal=dry_run)


def _recipe(
    what: Recipe | str | Path,
    formats: Sequence[Any],
    mtp_from: str | None,
    base: str | None,
    calibration: Calibration | None,
) -> Recipe:
    from qexport.errors import UsageProblem
    from qexport.recipe.load import load_recipe
    from qexport.recipe.named import find_recipe
    from qexport.recipe.recipe import Recipe

    if isinstance(what, str | Path) and formats:
        return recipe_for(what, formats, mtp_from=mtp_from, base=base, calibration=calibration)
    if formats or mtp_from is not None or base is not None or calibration is not None:
        raise UsageProblem("a recipe says its formats, base and calibration itself; they go with a model")
    return what if isinstance(what, Recipe) else load_recipe(find_recipe(str(what)))


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _AT[name]
    except KeyError:
        raise AttributeError(f"module 'qexport' has no attribute {name!r}") from None
    return getattr(import_module(f"qexport.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
