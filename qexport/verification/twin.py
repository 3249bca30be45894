"""Folders that nothing here loads, run as a GGUF with the same numbers (:mod:`qexport.formats.gguf.twin`).

What runs is llama.cpp, and what it runs is a file that is made for it and removed afterwards; the receipt
says so (``runtime``: ``xllamacpp by GGUF twin``). What that proves is the folder's weights, its tokenizer and
its head, by text and by drafts. What it does not is how a loader reads the folder: that is asked of the
config (``stored_form``), and of the runtimes that serve it, where there are some.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.input_scales import stored_input_scales
from qexport.errors import EnvironmentProblem, QexportError
from qexport.formats.gguf.twin import plan_twin
from qexport.onepass.disk import free_bytes
from qexport.onepass.execute import execute
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.judge import skipped
from qexport.verification.runtime import Runtime, Session, Settings
from qexport.verification.runtimes import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qexport.artifacts.artifact import Opened
    from qexport.formats.plan import ArtifactPlan
    from qexport.verification.options import VerifyOptions
    from qexport.verification.steps import Say


class GgufTwin(Runtime):
    """llama.cpp, given the twin in place of the folder."""

    drafts = True
    sees = False

    def __init__(self, file: Path, inner: Runtime) -> None:
        self.name = f"{inner.name} by GGUF twin"
        self.ends_by_text = inner.ends_by_text
        self._file, self._inner = file, inner

    def open(self, model: Path, settings: Settings) -> Session:
        """Load the twin, whatever ``model`` is."""
        return self._inner.open(self._file, settings)


def has_twins(options: VerifyOptions) -> bool:
    """Whether folders without a runtime are run so: asked for, and llama.cpp is here."""
    return options.twin and (options.llama_server is not None or find_spec("xllamacpp") is not None)


@contextmanager
def twin_of(artifact: Opened, options: VerifyOptions, say: Say) -> Iterator[tuple[GgufTwin | None, Verdict]]:
    """The twin, as long as the context lasts, and what is to be said of it."""
    try:
        plan = plan_twin(artifact)
        place = _place(plan)
    except QexportError as error:
        yield None, skipped(Check.TWIN, error.message)
        return
    with tempfile.TemporaryDirectory(prefix="qexport-twin-", dir=place) as folder:
        say(f"{artifact.label}: making a GGUF of the same numbers, {plan.size / 1e9:.2f} GB")
        try:
            execute([plan], Path(folder), threads=options.threads or None)
        except QexportError as error:
            yield None, skipped(Check.TWIN, error.message)
            return
        types = plan.details["tensor_types"]
        words = ", ".join(f"{count} {kind}" for kind, count in types.items())
        made = f"a GGUF of the same numbers ({words}; {plan.size / 1e9:.2f} GB) stands for the folder"
        if any(scale is not None for _, scale in stored_input_scales(artifact)):
            made += "; its weights: activations, which the folder has in four bits, are not rounded there"
        data = {"tensor_types": types, "size": plan.size}
        twin = GgufTwin(Path(folder) / plan.files[0].name, llama_cpp(options.llama_server))
        yield twin, Verdict(Check.TWIN, Status.PASS, made, data)


def _place(plan: ArtifactPlan) -> Path:
    """The folder for temporary files. Raises EnvironmentProblem: the file is larger than what is free."""
    place = Path(tempfile.gettempdir())
    free = free_bytes(place)
    if plan.size > free:
        raise EnvironmentProblem(
            f"a GGUF of the same numbers takes {plan.size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free for "
            "temporary files",
            hint="TMPDIR names another folder for them.",
        )
    return place
