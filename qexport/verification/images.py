"""What an artifact makes of pictures, beside what its source makes of them.

Two small pictures (:mod:`qexport.verification.sight`) are shown. What comes out of the tower is compared
number by number: it hangs on every tensor of the tower, on the mean and deviation of the colours, on the
order of patches, channels and positions, and on nothing else. The text that follows is compared as all text
is, and once more with the MTP head drafting.

Errors are relative to how far the source's rows differ from their mean: what all rows share tells nothing of
a picture. Measured on a tower of real widths, and on faults planted into a small one: docs/vision.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.redact import redact
from qexport.container.gguf_file import read_gguf
from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.machine import available_memory
from qexport.families.roles import Block
from qexport.formats.registry import tolerance
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.judge import failed, judge_agreement, judge_mtp_text, skipped
from qexport.verification.memory import F32_BYTES, HEADROOM
from qexport.verification.own_numbers import Own, or_by_own_numbers
from qexport.verification.reference import TransformersReference
from qexport.verification.sight import PICTURES, QUESTION, Seen, SourceSight, ids_around, optics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from qexport.artifacts.description import Description
    from qexport.families.view import ModelView
    from qexport.formats.tolerance import Tolerance
    from qexport.verification.options import VerifyOptions
    from qexport.verification.reference import Reference
    from qexport.verification.runtime import Generation, Predicted, Runtime, Session, Settings


# By the tower's stored type, times the root of its blocks, whose errors add up at first, and no more behind
# the sixth. At least 1.6 times what was measured (docs/vision.md, benchmarks/towers.py).
_LIMITS: Mapping[str, float] = {"F32": 0.003, "F16": 0.003, "BF16": 0.01, "Q8_0": 0.03}
_MOST_BLOCKS = 6
_SAME_NUMBERS = 0.001  # a folder's tower, computed in float32 like the source's
_FRAMES = ("v.patch_embd.weight", "v.patch_embd.weight.1")
_HALF = 2e-3  # what float16 may cost
_MOST_TOKENS = 32


@dataclass
class Images:
    """One artifact and two pictures.

    Attributes:
        towers: llama.cpp's files, the first for text; none where the tower is in the folder.
        shown: the pictures; with the text around them once a session has made tokens of it.
        answers, drafted: what was said of each, without MTP and with it.
        rows: what each tower made of each.
    """

    about: Description
    view: ModelView
    options: VerifyOptions
    shown: tuple[Seen, ...]
    tokens: int
    answers: list[Generation] = field(default_factory=list)
    drafted: list[Generation] = field(default_factory=list)
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def towers(self) -> tuple[Path, ...]:
        return self.about.towers

    @property
    def projector(self) -> Path | None:
        """The file that the runtime is to load for text."""
        return self.towers[0] if self.towers else None

    def show(self, session: Session, *, drafting: bool = False) -> Verdict | None:
        """Ask about each picture. What keeps it from an answer, if anything does."""
        kept = self.drafted if drafting else self.answers
        probabilities = 0 if drafting else self.options.n_probs
        try:
            if not self.shown[0].ids:
                self.shown = self._worded(session)
            ambiguous = self.shown[0].ids.count(self.shown[0].image_token) != self.tokens
            for seen in () if ambiguous else self.shown:
                many = min(_MOST_TOKENS, self.options.n_predict)
                kept.append(session.see(seen, n_predict=many, n_probs=probabilities))
            if not drafting and not self.towers:
                self.rows[self.about.path.name] = [session.embed(seen) for seen in self.shown]
        except RuntimeFailure as failure:
            kept.clear()
            return failed(Check.IMAGE_MTP if drafting else Check.IMAGE_TEXT, failure)
        words = "the prompt has the token that stands for a picture's rows"
        return skipped(Check.IMAGE_TEXT, words) if ambiguous else None

    def _worded(self, session: Session) -> tuple[Seen, ...]:
        """The question as the artifact's template has it, the picture before it."""
        text = QUESTION
        if self.about.chats:
            try:
                text = session.render_chat([{"role": "user", "content": QUESTION}])
            except RuntimeFailure as failure:
                if failure.kind is not Failure.REFUSED:
                    raise
        place = max(0, text.find(QUESTION))
        before, after = text[:place], text[place:] or QUESTION
        special = not (self.about.chats and self.about.complete_chats)
        picture, image_token = ids_around(self.view, self.tokens)
        ids = (
            *session.tokenize(before, add_special=special),
            *picture,
            *session.tokenize(after, add_special=False),
        )
        return tuple(
            replace(seen, before=before, after=after, ids=ids, image_token=image_token) for seen in self.shown
        )

    def embed(self, runtime: Runtime, settings: Settings) -> Verdict | None:
        """What each file of a tower makes of the pictures, in a process of its own."""
        for tower in self.towers:
            try:
                session = runtime.open_tower(self.about.path, replace(settings, projector=tower))
                if session is None:
                    return None
                with session:
                    self.rows[tower.name] = [session.embed(seen) for seen in self.shown]
            except RuntimeFailure as failure:
                return failed(Check.IMAGE_EMBEDDINGS, failure, about=tower.name)
            except EnvironmentProblem as problem:
                return skipped(Check.IMAGE_EMBEDDINGS, f"{redact(problem.message)} ({problem.hint})")
        return None

    def judge(self, reference: Reference | None, own: Own) -> list[Verdict]:
        """Everything that was seen against the source; ``own`` as for :func:`or_by_own_numbers`."""
        found: list[Verdict] = []
        if self.drafted:
            text = judge_mtp_text(self.answers, self.drafted, tie=self.options.mtp_tie)
            found.append(replace(text, check=Check.IMAGE_MTP, data={**text.data, **_drafts(self.drafted)}))
        if not self.answers and not self.rows:
            return found
        sight = self._sight(reference)
        for check, there in ((Check.IMAGE_EMBEDDINGS, self.rows), (Check.IMAGE_TEXT, self.answers)):
            if there and isinstance(sight, str):
                found.append(skipped(check, sight))
        if isinstance(sight, str):
            return found
        if self.rows:
            found.append(judge_embeddings(self.rows, sight.embeddings, self.limits))
        if sight.frames and self.towers:
            found.append(judge_frames(self.towers, sight.frames))
        if self.answers:
            found.append(self._judge_text(sight, reference, own))
        return found

    @property
    def limits(self) -> dict[str, float]:
        """How far off each tower may be."""
        found = {tower.name: self._limit(tower) for tower in self.towers}
        return found or {self.about.path.name: _SAME_NUMBERS}

    def _limit(self, tower: Path) -> float:
        assert self.view.vision is not None
        try:
            per_block = _LIMITS.get(read_gguf(tower).file_type, max(_LIMITS.values()))
        except InputError:
            per_block = max(_LIMITS.values())
        return float(per_block * min(self.view.vision.layers, _MOST_BLOCKS) ** 0.5)

    def _judge_text(self, sight: SourceSight, reference: Reference | None, own: Own) -> Verdict:
        if not isinstance(reference, TransformersReference):
            return skipped(Check.IMAGE_TEXT, "the source was not loaded to compare with")
        answers = [
            replace(answer, steps=_until(answer.steps, seen.image_token))
            for seen, answer in zip(self.shown, self.answers, strict=True)
        ]

        def judged(by: TransformersReference, limits: Tolerance) -> Verdict:
            scores = [
                sight.score(by.model, seen, answer.tokens, top=self.options.n_probs)
                for seen, answer in zip(self.shown, answers, strict=True)
            ]
            stored = self.about.file_type or "unknown type"
            return judge_agreement(answers, scores, limits, file_type=stored, source=by.label, noise=by.noise)

        limits = self.options.limits or tolerance(self.about.file_type)
        found = or_by_own_numbers(judged(reference, limits), limits, own, judged)
        texts = [answer.text for answer in self.answers]
        return replace(found, check=Check.IMAGE_TEXT, data={**found.data, "answers": texts})

    def _sight(self, reference: Reference | None) -> SourceSight | str:
        """The source's own; or why there is none. Of a reference for several artifacts it is kept there."""
        if not self.options.reference:
            return "not asked for"
        kept = getattr(reference, "sight", None)
        if isinstance(kept, SourceSight):
            return kept
        values = sum(tensor.data.numel for tensor in self.view if tensor.block is Block.VISION)
        needed, available = int(F32_BYTES * values * HEADROOM), available_memory()
        if needed > available:
            return f"the source's tower needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
        try:
            sight = SourceSight(self.view)
        except (EnvironmentProblem, InputError) as error:
            return redact(error.message)
        if isinstance(reference, TransformersReference):
            reference.sight = sight
        return sight


def images_for(about: Description, view: ModelView | None, options: VerifyOptions) -> Images | Verdict | None:
    """What is to be shown, or why nothing is; ``None`` where the source is not known to see."""
    if view is None or view.vision is None:
        return None
    if not about.towers and not about.sees:
        here = "the folder has none" if about.path.is_dir() else "no file of one is beside this one"
        words = f"the source has a vision tower, {here}: it takes text alone"
        return skipped(Check.IMAGE_LOADS, words, blind=True)
    try:
        source = optics(view)
        mine = source if about.artifact is None else optics(about.artifact.view())
    except InputError as error:
        return skipped(Check.IMAGE_LOADS, redact(error.message))
    pixels = [picture.pixels(source.side) for picture in PICTURES]
    shown = tuple(Seen(each, mine.prepare(each)) for each in pixels)
    return Images(about, view, options, shown, source.tokens)


def judge_embeddings(
    rows: Mapping[str, Sequence[np.ndarray]], source: Sequence[np.ndarray], limits: Mapping[str, float]
) -> Verdict:
    """Each tower's rows against the source's, for all pictures together."""
    check = Check.IMAGE_EMBEDDINGS
    expected = np.concatenate(source)
    spread = float(np.linalg.norm(expected - expected.mean(axis=0)))
    data: dict[str, Any] = {"pictures": len(source), "tokens": len(expected), "towers": {}}
    words, faults = [], []
    for name, each in rows.items():
        made = np.concatenate(list(each))
        if made.shape != expected.shape:
            faults.append(f"{name} makes {_size(made)}, the source {_size(expected)}")
            continue
        error = float(np.linalg.norm(made - expected)) / max(spread, 1e-30)
        data["towers"][name] = {"error": error, "limit": limits[name]}
        words.append(f"{name} is off by {error:.2%}")
        if not error <= limits[name]:
            faults.append(f"{name}: at most {limits[name]:.1%} expected")
    summary = "; ".join([", ".join(words), *faults] if words else faults)
    if not faults:
        summary += f" of what {len(source)} pictures make different in the source's"
    return Verdict(check, Status.FAIL if faults else Status.PASS, summary, data)


def judge_frames(towers: Sequence[Path], source: Sequence[np.ndarray]) -> Verdict:
    """Each file has the two frames of a patch in their order, of which a picture shows the sum alone."""
    check, faults = Check.IMAGE_FRAMES, []
    for tower in towers:
        try:
            stored = [_stored(tower, name) for name in _FRAMES]
        except (InputError, KeyError, ValueError, OSError) as error:
            faults.append(f"{tower.name}: {redact(str(error))}")
            continue
        for name, mine, theirs in zip(_FRAMES, stored, source, strict=True):
            if mine.shape != theirs.shape or not np.allclose(mine, theirs, rtol=_HALF, atol=_HALF):
                faults.append(f"{tower.name}: {name} is not the source's")
                break
    if faults:
        return Verdict(check, Status.FAIL, "; ".join(faults))
    return Verdict(check, Status.PASS, "both frames of a patch are the source's, in their order")


def _stored(tower: Path, name: str) -> np.ndarray:
    """A tensor of floating-point numbers."""
    entry = read_gguf(tower).entries[name]
    dtype = {"F32": "<f4", "F16": "<f2"}[entry.type_name]
    with tower.open("rb") as file:
        file.seek(entry.start)
        values = np.frombuffer(file.read(entry.stop - entry.start), dtype)
    return values.astype(np.float32).reshape(entry.shape)


def _until(steps: Sequence[Predicted], image_token: int) -> tuple[Predicted, ...]:
    """Up to a token that only a picture's rows may stand behind."""
    return tuple(takewhile(lambda step: step.token != image_token, steps))


def _size(rows: np.ndarray) -> str:
    return f"{rows.shape[0]} rows of {rows.shape[1]} numbers"


def _drafts(answers: Sequence[Generation]) -> dict[str, int]:
    drafted, accepted = (
        sum(getattr(answer, of) for answer in answers) for of in ("draft_n", "draft_accepted")
    )
    return {"drafted": drafted, "accepted": accepted}
