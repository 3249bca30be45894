"""Recipes written into a folder of a test."""

import re
from pathlib import Path
from textwrap import dedent

from qexport.errors import UsageProblem
from qexport.recipe.load import load_recipe

SMALL = """
source: {model: org/Model}
artifacts:
  - gguf: {types: [Q4_K_M, Q8_0]}
  - mlx: {bits: 6}
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def load(folder, text, *overrides):
    return load_recipe(write(folder, text), overrides)


def complaints(folder, text, *overrides):
    """The message's lines, without the folder and the columns."""
    try:
        load(folder, text, *overrides)
    except UsageProblem as problem:
        text = problem.message.replace(f"{folder}/", "")
        lines = text.splitlines()
        lines = [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]
        return [re.sub(r"^(r\.yaml:\d+):\d+: ", r"\1: ", line) for line in lines]
    return []
