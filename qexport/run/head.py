"""An MTP head tuned to its trunk, from a model that is named to a folder that is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.errors import InputError
from qexport.evidence.corpus import read_corpus
from qexport.evidence.options import StreamOptions
from qexport.families.view import needs_head
from qexport.headtune.options import TuneOptions
from qexport.onepass.files import read_plain
from qexport.onepass.sources import Sources
from qexport.run.model import bases_of, examine, fetched, sources_of
from qexport.run.own_text import TextRequest, own_text
from qexport.run.watcher import Phase
from qexport.sizes import counted

if TYPE_CHECKING:
    from collections.abc import Set

    from qexport.doctor.diagnose import Diagnosis
    from qexport.families.view import ModelView
    from qexport.headtune.tune import DividedText
    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.recipe import Recipe, RecipeModel
    from qexport.run.local import Local
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
        """The text, divided; see :func:`qexport.headtune.tune.prepare`. Raises also as :func:`needs_head`."""
        from qexport.headtune.tune import prepare

        needs_head(view)
        return prepare(read_corpus(self.text), view, self.options)


def tuned_head(
    choice: ModelChoice,
    diagnosis: Diagnosis,
    request: HeadRequest,
    watcher: Watcher,
    made_of: str | None = None,
) -> dict[str, Any]:
    """Tune the head of the model that was looked at, write its folder, and give the receipt.

    Args:
        made_of: a hash that goes into it.

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
        + ", ".join(f"{counted(count, 'document')} to {split}" for split, count in prepared.documents.items())
    )
    view = fetched(choice, diagnosis).repaired.view()
    request.work.mkdir(parents=True, exist_ok=True)
    try:
        tuned = tune(
            view,
            prepared,
            request.options,
            request.stream,
            spill=request.work,
            bars=lambda phase, total: watcher.phase(Phase(phase), total),
            say=watcher.say,
        )
    except InputError:  # states of a text that is refused are of no use to anybody
        if request.spill is None:
            shutil.rmtree(request.work)
        raise
    if request.out.exists():
        sources.refuse_removal(request.out)
    document = write_head(request.out, view, tuned, request.options, _base_of(diagnosis), made_of)
    if request.spill is None:
        shutil.rmtree(request.work)
    return document


def with_tuned_heads(recipe: Recipe, local: Local, watcher: Watcher, keys: Set[str]) -> Recipe:
    """The recipe with the heads tuned that it wants tuned, of the models with these keys.

    A head that an earlier run has made, of the same model and text and in the same way, is taken.
    """
    subjects = tuple(
        _with_tuned_head(each, recipe, local, watcher) if each.key in keys and each.tuning else each
        for each in recipe.subjects
    )
    return recipe if subjects == recipe.subjects else replace(recipe, subjects=subjects)


def _with_tuned_head(subject: RecipeModel, recipe: Recipe, local: Local, watcher: Watcher) -> RecipeModel:
    from qexport.headtune.folder import RECEIPT

    tuning, out = subject.tuning, local.out or Path()
    assert tuning is not None
    choice = replace(subject.choice, vision="drop")
    text = tuning.text or out / f"{subject.name}-own.jsonl"
    if tuning.text is None and not text.is_file():
        watcher.say(f"{subject.name} writes text of its own: {text.name}")
        own_text(choice, TextRequest(text, tokens=tuning.tokens, threads=local.threads), watcher)
    stream = replace(local.stream, threads=local.threads)
    request = HeadRequest(text, out / f"{subject.name}-head", tuning.options, stream, overwrite=True)
    diagnosis = examine(choice, download=False)
    known = _known(request, diagnosis)
    receipt = request.out / RECEIPT
    there = None if local.overwrite else read_plain(receipt, 1 << 26)
    if there is not None and json.loads(there).get("made_of") == known:
        watcher.say(f"{request.out.name} is there, from the same model and text")
    else:
        watcher.diagnosed(diagnosis)
        document = tuned_head(choice, diagnosis, request, watcher, made_of=known)
        watcher.say(f"{request.out.name}: {document['result']} {document['reason']}".rstrip())
    return replace(subject, choice=replace(subject.choice, mtp="graft", tuned=str(request.out)))


def _known(request: HeadRequest, diagnosis: Diagnosis) -> str:
    """What a head follows from: models by their files as they lie there, the text, how it is tuned."""
    checkpoints = [diagnosis.subject.checkpoint, *bases_of(diagnosis)]
    known = [
        __version__,
        [[each.label, each.identity()] for each in checkpoints],
        read_corpus(request.text).sha256,
        asdict(request.options),
        request.stream.precision,
    ]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _base_of(diagnosis: Diagnosis) -> str:
    """Whose head it was."""
    origin, base = diagnosis.repaired.mtp_origin, diagnosis.subject.base
    return base.label if base is not None and origin.startswith("grafted") else diagnosis.repaired.label
