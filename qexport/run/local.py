"""What belongs to the machine that a recipe is run on, and to that run: no recipe says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qexport.evidence.options import StreamOptions

if TYPE_CHECKING:
    from qexport.verification.options import VerifyOptions


Pushing = Literal["push", "rehearse"]


@dataclass(frozen=True)
class Runtimes:
    """What this machine proves artifacts with; recipes say which runtime, not where it is.

    Attributes:
        llama_server: the user's own, instead of the one inside xllamacpp.
        pythons: by the name of a runtime (``vllm``), the Python that has it.
    """

    llama_server: Path | None = None
    pythons: Mapping[str, Path] = field(default_factory=dict)

    def of(self, verify: VerifyOptions | None) -> VerifyOptions | None:
        """The options of an artifact, completed."""
        if verify is None:
            return None
        return replace(
            verify,
            llama_server=self.llama_server or verify.llama_server,
            runtime_python=self.pythons.get(verify.runtime, verify.runtime_python),
        )


@dataclass(frozen=True)
class Local:
    """What belongs to this machine and this run, not to the recipe.

    Attributes:
        out: the folder that holds the artifacts' folders, and the ledger; without it they are made here, and
            the ledger lies in the first of them.
        runtimes: what proves artifacts; ``None`` proves nothing, and receipts say so.
        stream: how evidence is collected; its precision is the recipe's.
        threads: of the encoders; every processor by default.
        overwrite: files that are there are made again.
        allow_unverified: what nothing here could run, or compare, is good enough, whatever the recipe says.
        report: write one.
        pushing: what becomes of the recipe's ``publish``: ``push``, ``rehearse``, or (``None``) nothing.
    """

    out: Path | None = None
    runtimes: Runtimes | None = field(default_factory=Runtimes)
    stream: StreamOptions = field(default_factory=StreamOptions)
    threads: int | None = None
    overwrite: bool = False
    allow_unverified: bool = False
    report: bool = False
    pushing: Pushing | None = None
