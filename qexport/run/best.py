"""The best file of a size, and the proof that it is one: beside the plain file of that size, on other text.

Types that are chosen by sensitivities and written with error feedback are nearly always better, and that is
no reason to believe it: the text that they were calibrated on may be another than the model's. So what was
written is compared with what the plain type would have given (:mod:`qexport.onepass.as_stored`), position by
position, over text that was not calibrated on: one that the user names, a tenth of the user's corpus that was
kept apart, or else the held-out text inside the package. Where the gain is not beyond noise, the plain type
is written instead, under its own name, and receipt and outcome say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.assign.aim import wants_best
from qexport.errors import InputError, UsageProblem
from qexport.evidence.corpus import BUILTIN_LABEL, heldout_corpus, kept_apart, read_corpus
from qexport.evidence.tokens import tokenize
from qexport.formats.format import ATTACHED
from qexport.formats.opening import open_artifact
from qexport.formats.registry import format_of
from qexport.onepass.as_stored import as_stored
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.text import nats, with_error
from qexport.receipt.types import AgainstPlain
from qexport.run.receipts import forecast, plain_entry_of
from qexport.run.target import Item, plan
from qexport.verification.divergence import compare_runs, gained
from qexport.verification.text_run import run_text, scored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.corpus import Corpus
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.families.view import ModelView
    from qexport.receipt.types import Artifact
    from qexport.recipe.recipe import Calibration
    from qexport.verification.text_run import TextRun


TOKENS = 8192
"""Held-out tokens that files are compared over; half of them are scored."""
_FEWEST = 2048  # of a corpus of the user's; with less of it, the held-out text inside the package is better
_SURE = 2.0  # standard errors that a gain has to have
GENERAL = (
    "calibrated on a general corpus: for a model of a narrow field that gives away much of what can be "
    "gained (a model of Python code: -31 % of the divergence at the same size instead of -43 % with Python). "
    "Text like the model's own is worth more than any setting"
)


@dataclass(frozen=True)
class Heldout:
    """Text to judge by, and what it is, in words."""

    tokens: np.ndarray
    words: str


def each_best(options: Any, *, feedback: bool = True) -> tuple[Any, ...]:
    """Options as they are; of those that ask for the best of several types, one for each, with error feedback
    where there is a text for it."""
    sizing = format_of(options).sizing
    if not wants_best(options) or sizing is None:
        return (options,)
    if options.aim is None and sizing.best is None:
        raise UsageProblem(
            f"the best {format_of(options).words.name} file of which size?", hint="Name it with --like TYPE."
        )
    made = (options,) if options.aim is not None or sizing.best is None else sizing.best(options)
    return tuple(replace(each, feedback=feedback) if wants_best(each) else each for each in made)


def divided(corpus: Corpus, how: Calibration, view: ModelView) -> tuple[Corpus, Heldout]:
    """What is calibrated on, and what is judged by.

    Raises:
        InputError: the model has no usable tokenizer; a text to judge by cannot be read, or is too short.
        UsageProblem: it is what is calibrated on.
    """
    if how.heldout is not None:
        return corpus, _named(how.heldout, how, view, corpus.sha256)
    parts = kept_apart(corpus, how.seed) if corpus.kind != "built-in" else None
    if parts is not None:
        rest, kept = parts
        ids = _ids(kept, view, how.chunk)
        if ids is not None and ids.size >= _FEWEST:
            return rest, Heldout(ids, f"a tenth of {corpus.label} that was kept apart")
    return corpus, _inside(view)


def heldout_beside(matrix: ImportanceMatrix, how: Calibration, view: ModelView) -> Heldout:
    """What is judged by where a matrix is ready, and its text is not at hand. Raises as :func:`divided`."""
    if how.heldout is None:
        return _inside(view)
    fed = () if how.feedback_text is None else (read_corpus(how.feedback_text).sha256,)
    return _named(how.heldout, how, view, *matrix.datasets, *fed)


def _named(path: Path, how: Calibration, view: ModelView, *known: str) -> Heldout:
    """A text of the user's own to judge by, none of ``known``, by hash. Raises as :func:`divided`."""
    text = read_corpus(path)
    if any(text.sha256[:16] in each for each in known):
        raise UsageProblem(
            f"{path.name} is what is calibrated on; to judge by, it has to be another text",
            hint="Without --heldout a tenth of a corpus is kept apart.",
        )
    ids = _ids(text, view, how.chunk)
    if ids is None:
        raise InputError(
            f"{path.name} has less than the {how.chunk} tokens of a chunk",
            hint=f"{TOKENS} tokens are compared over where there are so many.",
        )
    return Heldout(ids, text.label)


def _inside(view: ModelView) -> Heldout:
    """The held-out text that comes with qexport. Raises InputError as :func:`divided`."""
    ids = _ids(heldout_corpus(), view, 512)
    assert ids is not None
    return Heldout(ids, f"the held-out text inside the package, which is general ({BUILTIN_LABEL})")


def _ids(corpus: Corpus, view: ModelView, chunk: int) -> np.ndarray | None:
    chunk = min(chunk, int(view.text.get("max_position_embeddings") or chunk))
    vocabulary, tokens = int(view.text["vocab_size"]), max(TOKENS, chunk)
    try:
        found = tokenize(
            corpus, view.files, tokens=tokens, chunk=chunk, vocab_size=vocabulary, model=view.label
        )
    except InputError:
        if corpus.kind == "built-in":
            raise
        return None  # less than a chunk
    return found.ids


def judged(
    items: Sequence[Item], diagnosis: Diagnosis, heldout: Heldout, say: Callable[[str], None]
) -> list[Item]:
    """The items with how they did beside plain ones, where they were to be the best.

    Args:
        items: written; of a folder and a drafter beside it both, or neither.
    """
    tried = [item for item in items if wants_best(item.target.options) and not item.attached]
    targets = {id(item.target): item.target for item in tried}
    if not targets:
        return list(items)
    view, found = diagnosis.repaired.view(), dict[int, AgainstPlain]()
    say(f"comparing with plain types on {heldout.words}: {heldout.tokens.size} tokens")
    with run_text(view, heldout.tokens) as source:
        for key, target in targets.items():
            mine = next(item for item in tried if item.target is target)
            found[key] = _compared(mine, diagnosis, source, heldout.words)
            say(f"{mine.name}: {words(found[key])}")
    return [replace(i, against=None if i.attached else found.get(id(i.target))) for i in items]


def _compared(item: Item, diagnosis: Diagnosis, source: TextRun, text: str) -> AgainstPlain:
    view, path = diagnosis.repaired.view(), item.path if item.target.format.ladder else item.target.out
    plans = [made for made, _ in item.target.plain().plans(diagnosis) if made.kind not in ATTACHED]
    with run_text(open_artifact(path, like=view).view(), source.tokens) as run:
        best = compare_runs(source, run)
    with run_text(as_stored(view, plans), source.tokens) as run:
        plain = compare_runs(source, run)
    gain = gained(plain, best)
    kept = gain.value > _SURE * (gain.error or 0.0)
    return AgainstPlain(
        kept=kept,
        best=best.kld.estimate,
        plain=plain.kld.estimate,
        gain=gain,
        positions=scored(source.tokens),
        text=text,
        fingerprint=item.fingerprint,
        label="" if kept else item.plan.label,
        tried=None if kept else forecast(item.plan.assignment),
    )


def words(found: AgainstPlain) -> str:
    """How it ended, in a sentence."""
    share = f"{1 - found.best.value / found.plain.value:.0%}" if found.plain.value else "nothing"
    beside = f"{with_error(found.best)} nats, plain {with_error(found.plain)} at the same size"
    if found.kept:
        return f"{beside}: {share} less"
    noise = "" if found.gain.error is None else f" ± {nats(found.gain.error)}"
    return f"{beside}: no better beyond noise ({nats(found.gain.value) or '0'}{noise}), so plain is written"


def lost(items: Sequence[Item]) -> list[Item]:
    """Those that are no better than plain ones."""
    return [item for item in items if item.against is not None and not item.against.kept]


def plain_items(items: Sequence[Item], diagnosis: Diagnosis, given: Sequence[Path]) -> list[Item]:
    """The plain artifacts that are written instead of these, which are all of their targets."""
    found: list[Item] = []
    for target in {id(item.target): item.target for item in items}.values():
        mine = [item for item in items if item.target is target]
        made = [each for each in plan([target.plain()], diagnosis, given) if not each.attached]
        found += [
            replace(plain, against=item.against, instead_of=item.place)
            for plain, item in zip(made, mine, strict=True)
        ]
    return found


def plain_there(items: Sequence[Item], diagnosis: Diagnosis, given: Sequence[Path]) -> list[Item]:
    """What an earlier run has written instead of those of these that were no better than plain."""
    best = [item for item in items if wants_best(item.target.options) and not item.attached]
    there = {item.place: _plain_of(item) for item in best}
    tried = {id(item.target) for item in best if there[item.place] is not None}
    plain = plain_items([item for item in best if id(item.target) in tried], diagnosis, given)
    return [item.as_found(entry) for item in plain if (entry := there[item.place]) is not None]


def _plain_of(item: Item) -> Artifact | None:
    return plain_entry_of(item.target.plain().folder_of(item.plan.kind), item.fingerprint)


def remove(items: Sequence[Item]) -> None:
    """Their files, and their folders where nothing else is in them; other receipts forget them in time."""
    for item in items:
        for file in item.written:
            (item.folder / file.name).unlink(missing_ok=True)
    for folder in {item.folder for item in items if not item.target.format.ladder}:
        if [path.name for path in folder.iterdir()] == [RECEIPT_NAME]:
            (folder / RECEIPT_NAME).unlink()
            folder.rmdir()
