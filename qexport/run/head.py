"""An MTP head tuned to its trunk, from a model that is named to a folder that is written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.evidence.corpus import read_corpus
from qexport.evidence.options import StreamOptions
from qexport.headtune.options import TuneOptions
from qexport.onepass.sources import Sources
from qexport.run.model import fetched, sources_of
from qexport.run.watcher import Phase

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.families.view import ModelView
    from qexport.headtune.tune import DividedText
    from qexport.recipe.recipe import ModelChoice
    from qexport.run.watcher import Watcher


@dataclass(frozen=True)
class HeadRequest:
    """What is asked for.

    Attributes:
        text: what the model has written.
        out: the folder of the head.
        spill: the folder for states and checkpoints, which is kept; beside ``out`` and removed otherwise.
        overwrite: replace a head that is there.
    """

    text: Path
    out: Path
    options: TuneOptions = field(default_factory=TuneOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    spill: Path | None = None
    overwrite: bool = False

    @property
    def work(self) -> Path:
        """Where states and checkpoints are."""
        return self.spill or self.out.with_name(f".{self.out.name}.work")

    def prepare(self, view: ModelView) -> DividedText:
        """The text, divided; see :func:`qexport.headtune.tune.prepare`."""
        from qexport.headtune.tune import prepare

        return prepare(read_corpus(self.text), view, self.options)


def tuned_head(
    choice: ModelChoice, diagnosis: Diagnosis, request: HeadRequest, watcher: Watcher
) -> dict[str, Any]:
    """Tune the head of the model that was looked at, write its folder, and give the receipt.

    Raises:
        UsageProblem: there is something at ``out``, or it lies in a source.
        InputError: there is no head, the text is of no use, or the trunk is damaged.
        EnvironmentProblem: no transformers, no memory, no disk.
    """
    from qexport.headtune.folder import check_out, write_head
    from qexport.headtune.tune import tune

    sources = sources_of(diagnosis) | Sources(given=(request.text,))
    for place in (request.out, request.work):
        sources.refuse(place)
    check_out(request.out, overwrite=request.overwrite)
    prepared = request.prepare(diagnosis.repaired.view())
    watcher.say(
        f"{prepared.label}: {prepared.text.ids.size} tokens with those of the package; "
        + ", ".join(f"{count} documents to {split}" for split, count in prepared.documents.items())
    )
    view = fetched(choice, diagnosis).repaired.view()
    request.work.mkdir(parents=True, exist_ok=True)
    tuned = tune(
        view,
        prepared,
        request.options,
        request.stream,
        spill=request.work,
        bars=lambda phase, total: watcher.phase(Phase(phase), total),
        say=watcher.say,
    )
    if request.out.exists():
        sources.refuse_removal(request.out)
    document = write_head(request.out, view, tuned, request.options)
    if request.spill is None:
        shutil.rmtree(request.work)
    return document
