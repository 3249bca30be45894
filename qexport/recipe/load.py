"""From a file to a recipe: read the tree, put the overrides in, validate it, check what spans parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qexport.checkpoint.yaml_tree import Items, Table, parse_yaml
from qexport.errors import UsageProblem
from qexport.recipe.across import check_across, check_grafts, check_names
from qexport.recipe.artifact import Defaults, to_artifact, verification
from qexport.recipe.fields import fields_of, given_of
from qexport.recipe.override import with_overrides
from qexport.recipe.problems import Problems
from qexport.recipe.recipe import Calibration, Recipe
from qexport.recipe.schema import File, note
from qexport.verification.options import VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable


_MOST_BYTES = 4 << 20


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        overrides: ``key.path=value``, as ``--set`` takes them.

    Raises:
        UsageProblem: the file cannot be read, or things are wrong in it: all of them, each with its place.
    """
    return recipe_of(read_recipe_text(path), path, overrides)


def recipe_of(text: str, path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that ``text`` is, lying at ``path`` or yet to be written there. As :func:`load_recipe`."""
    problems = Problems(str(path))
    problems.root = parse_yaml(text, str(path), problems.add)
    if problems.root is None and not problems:
        problems.at((), "the file is empty")
    problems.root = with_overrides(problems.root, overrides, problems)
    recipe = None
    if isinstance(problems.root, Table):
        recipe = _recipe(path, problems)
    elif problems.root is not None:
        problems.at((), f"a recipe is a mapping, with {', '.join(fields_of(File, ()))}")
    problems.raise_any()
    assert recipe is not None
    return recipe


def read_recipe_text(path: Path) -> str:
    """The text of a recipe.

    Raises:
        UsageProblem: it is no file, too large, or not text.
    """
    try:
        if not path.is_file():
            path.stat()
            raise UsageProblem(f"the recipe {path} is not a file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UsageProblem(f"the recipe {path} is larger than {_MOST_BYTES >> 20} MiB")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageProblem(f"the recipe {path} is not text (UTF-8)") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in a name
        why = getattr(error, "strerror", None) or error
        raise UsageProblem(
            f"the recipe {path} cannot be read: {why}", hint="recipes/ has examples."
        ) from error


def _recipe(path: Path, problems: Problems) -> Recipe | None:
    assert isinstance(problems.root, Table)
    check_grafts(problems.root, problems)
    file = _validated(path, problems)
    if file is None:
        return None
    for limit, key in file.gates.types():
        problems.at(
            ("gates", limit, key), f"{key!r} is a type: give it with an artifact that has types", key=True
        )
    defaults = Defaults(
        calibrated=file.calibration is not None,
        verify=verification(file.verify, VerifyOptions()),
        gates=file.gates,
    )
    made = [to_artifact(entry, number, defaults, problems) for number, entry in enumerate(file.artifacts)]
    artifacts = {number: each for number, each in enumerate(made) if each is not None}
    subjects = [file.source.subject("model", file.mtp, file.vision, file.base)]
    if file.compare is not None:
        subjects.append(file.compare.subject("compare"))
    calibration = None if file.calibration is None else Calibration(**given_of(file.calibration))
    recipe = Recipe(tuple(subjects), tuple(artifacts.values()), calibration, file.publish, file.measure, path)
    check_names(artifacts, problems)
    check_across(recipe, list(artifacts), problems)
    return recipe


def _validated(path: Path, problems: Problems) -> Any | None:
    """The file as a model. What is wrong is noted, and the rest read again without it, so that what spans
    parts is judged in the same run; ``None`` where too little is left for that."""
    context = {"folder": path.parent}
    try:
        return File.model_validate(problems.root, context=context)
    except ValidationError as error:
        wrong = {step[:2] if step[:1] == ("artifacts",) else step[:1] for step in note(error, problems)}
    assert isinstance(problems.root, Table)
    rest = Table(dict(problems.root), problems.root.place, problems.root.keys_at)
    for part in wrong:
        if len(part) == 1:
            rest.pop(str(part[0]), None)
    entries = rest.get("artifacts")
    if isinstance(entries, Items):
        left = [entry for n, entry in enumerate(entries) if ("artifacts", n) not in wrong]
        rest["artifacts"] = Items(left, entries.place)
    try:
        file = File.model_validate(rest, context=context)
    except ValidationError:
        return None
    problems.root = rest
    return file
