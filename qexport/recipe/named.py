"""The recipes that come with qexport, by name: ``qexport run qwen3.5-9b``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from qexport.errors import UsageProblem, closest


def shipped_recipes() -> dict[str, Path]:
    """The files by name, without ``.yaml``."""
    folder = Path(str(resources.files("qexport.recipe") / "data"))
    if not folder.is_dir():  # a checkout, or an editable install of one
        folder = Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(spec: str) -> Path:
    """A file that is there, else the shipped recipe of that name (``demo``, ``recipes/demo.yaml``).

    A folder of that name, such as a model's, is none.

    Raises:
        UsageProblem: it is neither.
    """
    path = Path(spec)
    known = shipped_recipes()
    name = path.name.removesuffix(".yaml")
    is_known = path.parent in (Path(), Path("recipes")) and name in known
    try:
        if path.exists() and not (is_known and path.is_dir()):
            return path
    except (OSError, ValueError):  # a name too long, or one with a NUL
        pass
    if is_known:
        return known[name]
    raise UsageProblem(
        f"there is no recipe {spec}{closest(path.name.removesuffix('.yaml'), known)}",
        hint=f"Name a file, or one that comes with qexport: {', '.join(known)}.",
    )


def shown(path: Path) -> str:
    """What to call a recipe where another machine may read it: a shipped one by its name."""
    return path.stem if shipped_recipes().get(path.stem) == path else str(path)
