"""The kinds of artifacts that a recipe may name: one row each.

A row says which option class holds the choices, which of its fields a recipe does not set, and how a target of
the pipeline is made of them. Keys of a recipe are the fields of that class (``fields.py``), so a new option of
a format needs no line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.codecs.ggml_types import ggml_type
from qexport.errors import QexportError, UsageProblem
from qexport.formats.gguf.file_types import file_type
from qexport.formats.gguf.options import GgufOptions
from qexport.pipeline.gguf import GgufTarget

if TYPE_CHECKING:
    from qexport.pipeline.export import Target
    from qexport.recipe.recipe import Artifact

__all__ = ["KINDS", "Kind"]
