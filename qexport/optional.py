"""Packages that are not there after a plain ``pip install qexport``, and the extra that brings each.

Looking, planning, reporting and publishing need none of them. What reads or writes weights needs torch, what
proves an artifact its runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from qexport.errors import EnvironmentProblem

EXTRAS: Mapping[str, str] = {
    "torch": "torch",
    "numba": "torch",
    "safetensors": "torch",
    "xllamacpp": "llama",
    "transformers": "reference",
    "accelerate": "reference",
    "compressed_tensors": "reference",
    "sentencepiece": "reference",
    "mlx": "mlx",
    "mlx_lm": "mlx",
}
"""By the module's name."""
WEIGHTS = ("torch", "numba", "safetensors")
"""What reading and writing weights takes."""


def command_for(module: str) -> str:
    """What brings a module, to be typed."""
    return f"pip install 'qexport[{EXTRAS[module]}]'"


def missing(module: str) -> EnvironmentProblem:
    """The error of who needs a module that is not there."""
    return EnvironmentProblem(
        f"{module.replace('_', '-')} is needed for this, and is not installed", hint=f"{command_for(module)}."
    )


def require(*modules: str) -> None:
    """Raise EnvironmentProblem for the first that is not installed, before any work is done."""
    for module in modules:
        if find_spec(module) is None:
            raise missing(module)


def missing_from(error: Exception) -> EnvironmentProblem | None:
    """The same for an import that failed; ``None`` where it is another error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return missing(name) if name in EXTRAS else None
