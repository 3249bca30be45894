"""Folders that nothing here loads, run as a GGUF with the same numbers (:mod:`qexport.formats.gguf.twin`).

What runs is llama.cpp, and what it runs is a file that is made for it and removed afterwards; the receipt
says so (``runtime``: ``xllamacpp by GGUF twin``). What that proves is the folder's weights, its tokenizer,
its head and its vision tower, by text, drafts and pictures. What it does not is how a loader reads the
folder: that is asked of the config (``stored_form``), and of the runtimes that serve it.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.input_scales import stored_input_scales
from qexport.errors import EnvironmentProblem, QexportError
from qexport.formats.gguf.twin import plan_twin, plan_twin_tower
from qexport.onepass.disk import free_bytes
from qexport.onepass.execute import execute
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.judge import skipped
from qexport.verification.runtime import Runtime, Session, Settings
from qexport.verification.runtimes import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qexport.artifacts.artifact import Opened
    from qexport.verification.options import VerifyOptions
    from qexport.verification.steps import Say


class GgufTwin(Runtime):
    """llama.cpp, given the twin in place of the folder.

    Args:
        files: the twin, and its vision tower's where it has one.
    """

    drafts = True

    def __init__(self, files: Sequence[Path], inner: Runtime) -> None:
        self.name = f"{inner.name} by GGUF twin"
        self.ends_by_text = inner.ends_by_text
        self._file, *towers = files
        self._inner = inner
        self.towers, self.sees = tuple(towers), bool(towers)

    def open(self, model: Path, settings: Settings) -> Session:
        """Load the twin, whatever ``model`` is."""
        return self._inner.open(self._file, settings)

    def open_tower(self, model: Path, settings: Settings) -> Session | None:
        """The twin's tower, likewise."""
        return self._inner.open_tower(self._file, settings)


TWIN = "twin"
"""The runtime that is named for it."""


def has_twins(options: VerifyOptions) -> bool:
    """Whether folders are run so that no runtime is for, or all: asked for, and llama.cpp is here."""
    here = options.llama_server is not None or find_spec("xllamacpp") is not None
    return here and (options.twin or options.runtime == TWIN)


@contextmanager
def twin_of(artifact: Opened, options: VerifyOptions, say: Say) -> Iterator[tuple[GgufTwin | None, Verdict]]:
    """The twin, as long as the context lasts, and what is to be said of it."""
    try:
        plans = [plan_twin(artifact), *plan_twin_tower(artifact)]
        place = _place(size := sum(plan.size for plan in plans))
    except QexportError as error:
        yield None, skipped(Check.TWIN, error.message)
        return
    with tempfile.TemporaryDirectory(prefix="qexport-twin-", dir=place) as folder:
        say(f"{artifact.label}: making a GGUF of the same numbers, {size / 1e9:.2f} GB")
        try:
            execute(plans, Path(folder), threads=options.threads or None)
        except QexportError as error:
            yield None, skipped(Check.TWIN, error.message)
            return
        types = plans[0].details["tensor_types"]
        words = ", ".join(f"{count} {kind}" for kind, count in types.items())
        tower = ", its vision tower beside it" if len(plans) > 1 else ""
        made = f"a GGUF of the same numbers ({words}; {size / 1e9:.2f} GB{tower}) stands for the folder"
        if any(scale is not None for _, scale in stored_input_scales(artifact)):
            made += "; its weights: activations, which the folder has in four bits, are not rounded there"
        data = {"tensor_types": types, "size": size, "tower": len(plans) > 1}
        files = [Path(folder) / plan.files[0].name for plan in plans]
        yield GgufTwin(files, llama_cpp(options.llama_server)), Verdict(Check.TWIN, Status.PASS, made, data)


def _place(size: int) -> Path:
    """The folder for temporary files. Raises EnvironmentProblem: less than ``size`` bytes are free."""
    place = Path(tempfile.gettempdir())
    free = free_bytes(place)
    if size > free:
        raise EnvironmentProblem(
            f"a GGUF of the same numbers takes {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free for "
            "temporary files",
            hint="TMPDIR names another folder for them.",
        )
    return place
