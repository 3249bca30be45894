"""From a file to a recipe: read the tree, put the overrides in, read every part, check what spans parts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem
from qexport.formats.gguf.file_name import model_stem
from qexport.pipeline.measure import MEASURED_TOKENS
from qexport.recipe.across import check_across, check_names
from qexport.recipe.artifact import NAME, Defaults, read_artifact
from qexport.recipe.fields import check_keys, read_fields
from qexport.recipe.gates import Gates, read_gates
from qexport.recipe.override import with_overrides
from qexport.recipe.problems import Problems
from qexport.recipe.recipe import Calibration, Card, Mtp, Publication, Recipe, Source, Subject
from qexport.recipe.tree import Items, Table, parse
from qexport.recipe.values import WRONG, read_path, read_value
from qexport.recipe.verification import read_verify
from qexport.verify.options import VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.recipe.recipe import Artifact
    from qexport.recipe.tree import Node

__all__ = ["load_recipe"]

_PARTS = ("source", "mtp", "calibration", "artifacts", "verify", "measure", "gates", "publish", "compare")


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        overrides: ``key.path=value``, as ``--set`` takes them.

    Raises:
        UsageProblem: the file cannot be read, or things are wrong in it: all of them, each with its line.
    """
    problems = Problems()
    root = parse(_text(path), str(path), problems)
    if root is not None:
        root = with_overrides(root, overrides, problems)
    if root is not None and not isinstance(root, Table):
        problems.add(root.place, f"a recipe is a mapping, with {', '.join(_PARTS)}")
    recipe = _recipe(path, root, problems) if isinstance(root, Table) else None
    problems.raise_any()
    assert recipe is not None
    return recipe


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageProblem(
            f"the recipe {path} cannot be read: {error.strerror}", hint="recipes/ has examples."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageProblem(f"the recipe {path} is not text (UTF-8)") from error


def _recipe(path: Path, root: Table, problems: Problems) -> Recipe | None:
    check_keys(root, _PARTS, problems)
    folder = path.parent
    source = _source(root, "source", folder, problems)
    compare = _source(root, "compare", folder, problems)
    mtp = _mtp(root, folder, problems)
    calibration = _calibration(root, folder, problems)
    defaults = Defaults(
        calibrated=calibration is not None,
        verify=read_verify(root.entries.get("verify"), VerifyOptions(), problems),
        gates=read_gates(root.get("gates"), (), problems, Gates()),
    )
    artifacts = _artifacts(root, defaults, problems)
    check_names(artifacts, problems)
    publish = _publish(root, problems)
    if source is None:
        return None
    subjects = [Subject("model", source, mtp, _name(source))]
    if compare is not None:
        subjects.append(Subject("compare", compare, Mtp(), _name(compare)))
    recipe = Recipe(path, tuple(subjects), calibration, artifacts, publish, _measure(root, problems))
    check_across(recipe, root, problems)
    return recipe


def _source(root: Table, key: str, folder: Path, problems: Problems) -> Source | None:
    node = root.get(key)
    if node is None:
        if key == "source":
            problems.add(root.place, "'source' is missing: which model? (source: {model: org/name})")
        return None
    given = read_fields(node, Source, problems)
    if "model" not in given:
        return None
    if "name" in given and NAME.fullmatch(given["name"]) is None:
        assert isinstance(node, Table)
        problems.add(node.entries["name"].place, f"{given['name']!r} is no name for files and folders")
    given["model"] = _model(given["model"], node, "model", folder)
    return Source(**given)


def _mtp(root: Table, folder: Path, problems: Problems) -> Mtp:
    node = root.get("mtp")
    given = read_fields(node, Mtp, problems)
    if node is not None and given.get("base"):
        given["base"] = _model(given["base"], node, "base", folder)
    mtp = Mtp(**given)
    if node is not None and mtp.mode == "graft" and mtp.base is None:
        problems.add(node.place, "mode graft needs a 'base' whose head is taken")
    if node is not None and mtp.revision is not None and mtp.base is None:
        problems.add(node.place, "a 'revision' without a 'base'")
    return mtp


def _model(text: str, node: Node, key: str, folder: Path) -> str:
    """A path that begins like one is relative to the recipe (an override's: to where the command runs)."""
    if not text.startswith(("./", "../", "~")) and text not in (".", ".."):
        return text
    assert isinstance(node, Table)
    near = Path() if node.entries[key].value.place.line == 0 else folder
    return str((near / Path(text).expanduser()).resolve())


def _calibration(root: Table, folder: Path, problems: Problems) -> Calibration | None:
    node = root.get("calibration")
    if node is None:
        return None
    reader = partial(read_path, folder=folder)
    given = read_fields(node, Calibration, problems, readers={"corpus": reader, "imatrix": reader})
    calibration = Calibration(**given)
    if calibration.imatrix is not None and len(given) > 1:
        problems.add(node.place, "'imatrix' is a matrix that is ready: nothing else of calibration is used")
    for key, least in (("tokens", 2), ("chunk", 2)):
        value = getattr(calibration, key)
        if value is not None and value < least:
            assert isinstance(node, Table)
            problems.add(node.entries[key].place, f"{key} must be {least} at least")
    return calibration


def _artifacts(root: Table, defaults: Defaults, problems: Problems) -> tuple[Artifact, ...]:
    node = root.get("artifacts")
    if not isinstance(node, Items) or not node.items:
        place = root.place if node is None else node.place
        problems.add(place, "'artifacts' is missing: a list of what is to be written")
        return ()
    read = (read_artifact(item, defaults, problems) for item in node.items)
    return tuple(artifact for artifact in read if artifact is not None)


def _measure(root: Table, problems: Problems) -> int:
    node = root.get("measure")
    tokens = MEASURED_TOKENS if node is None else read_value(node, int, problems)
    if node is not None and tokens is not WRONG and tokens < 0:
        problems.add(node.place, "measure is a number of tokens, or 0")
    return 0 if tokens is WRONG else int(tokens)


def _publish(root: Table, problems: Problems) -> Publication | None:
    node = root.get("publish")
    if node is None:
        return None

    def card(inner: Node, problems: Problems) -> Card:
        return Card(**read_fields(inner, Card, problems))

    given = read_fields(node, Publication, problems, readers={"card": card})
    return Publication(**given) if "repo" in given else None


def _name(source: Source) -> str:
    return source.name or model_stem(source.model)
