"""A recipe as a value: what is exported from what, how it is proven, and where it goes.

It says *what*, never *where*: threads, devices and output folders belong to the command that runs it, so that
the same recipe gives the same files on a laptop, in CI and in a rented job.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from qexport.assign.aim import aim_of, needs_sensitivity
from qexport.evidence.options import Precision
from qexport.formats.format import CALIBRATED
from qexport.formats.gguf.file_name import model_stem
from qexport.formats.registry import format_of
from qexport.headtune.options import TuneOptions
from qexport.receipt.state import State
from qexport.recipe.choice import ModelChoice
from qexport.recipe.fields import Flag, Part, Text, list_of
from qexport.recipe.gates import Gates
from qexport.verification.options import MEASURED_TOKENS, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.formats.format import Format


Unverified = Literal["refuse", "allow"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
"""Names that may stand in file names, job names and on a command line as they are."""


@dataclass(frozen=True)
class Calibration:
    """What importance is collected with: text, or a matrix that is ready.

    Attributes:
        corpus: a text or records; the built-in corpus when not given.
        tokens: the most that are read.
        chunk: tokens in a chunk; every chunk is read as a text of its own.
        seed: order of the corpus's records.
        precision: arithmetic of the collecting pass.
        imatrix: a matrix that is ready; then nothing else is used but what is said of feedback.
        merge: matrices that are added to the one that is collected.
        sensitivity: whether gradients are collected, too: what an error in each row costs.
        sensitivity_tokens: the most tokens that gradients are taken of, from the beginning of the text.
        feedback_text: a text or records for error feedback; the corpus when not given.
        feedback_tokens: the most tokens of it that are sent through the model while it is written.
        heldout: a text or records, calibrated on by nobody, that the best files of their sizes are compared
            with plain ones on; a part of the corpus when not given.
    """

    corpus: Path | None = None
    tokens: int | None = None
    chunk: int = 512
    seed: int = 0
    precision: Precision = "auto"
    imatrix: Path | None = None
    merge: tuple[Path, ...] = ()
    sensitivity: bool = False
    sensitivity_tokens: int = 4096
    feedback_text: Path | None = None
    feedback_tokens: int = 32768
    heldout: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it is made of."""
        named = (self.corpus, self.imatrix, self.feedback_text, self.heldout)
        return tuple(path for path in (*named, *self.merge) if path is not None)


class Card(Part):
    """What a model card says that receipts cannot know; the Hub's own keys."""

    base_model: Text | None = None
    quantized_by: Text | None = None
    license: Text | None = None
    license_name: Text | None = None
    license_link: Text | None = None
    language: Annotated[tuple[Text, ...], list_of("texts")] = ()
    pipeline_tag: Text | None = None
    tags: Annotated[tuple[Text, ...], list_of("texts")] = ()

    def front_matter(self) -> dict[str, Any]:
        """What was given, as front matter that outranks the source's own."""
        return self.model_dump(exclude={"base_model", "quantized_by"}, exclude_defaults=True, mode="json")


class Publication(Part):
    """Where folders go on the Hub.

    Attributes:
        repo: a template: {folder} is the folder's name, {name} the model's, {artifact} the entry's.
        private: leave the repositories private when everything has passed.
        collection: that they are added to, by its title or its slug; {name} is the model's.
        ollama: send along, as Ollama reads it, what the model's settings recommend for sampling.
        presets: send along a models.ini, from which llama.cpp's router serves every GGUF file.
        card: what the model cards say besides.
    """

    repo: Text
    private: Flag = True
    collection: Text | None = None
    ollama: Flag = False
    presets: Flag = False
    card: Card = Card()


@dataclass(frozen=True)
class AskedArtifact:
    """One entry of ``artifacts``.

    Attributes:
        name: what ``--only`` calls it.
        options: of a format, which say the format; :data:`~qexport.formats.format.CALIBRATED` stands in them
            for the matrix of the run.
        folder: template of the folder's name: ``{name}`` is the model's; ``.`` is ``--out`` itself.
        verify: how it is proven; ``None``: not at all, and the receipt says so.
        gates: limits that the run ends with.
        unverified: what becomes of it where nothing is wrong and no runtime at hand could run it, or nothing
            could be compared with the source: ``refuse`` ends the run with an error and publishes nothing,
            ``allow`` publishes it, and its card says so.
    """

    name: str
    options: Any
    folder: str
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)
    gates: Gates = field(default_factory=Gates)
    unverified: Unverified = "refuse"

    @property
    def format(self) -> Format:
        """By the options."""
        return format_of(self.options)

    @property
    def kind(self) -> str:
        """``gguf``, ``mlx``, ``fp8``, ``nvfp4`` or ``merged``."""
        return self.format.word

    @property
    def types(self) -> tuple[str, ...]:
        """Types of a ladder; empty for formats that are one folder."""
        return self.options.types if self.format.ladder else ()

    @property
    def importance(self) -> bool:
        """Whether it is weighted by the calibration."""
        return self.format.matrix is not None and getattr(self.options, self.format.matrix) is CALIBRATED

    def good_enough(self, state: object) -> bool:
        """Whether it may be published as far as it is proven: the recipe itself may say ``verify: false``, or
        take what nothing could run or compare."""
        if state is State.PASSED or (state is State.NOT_RUN and self.verify is None):
            return True
        return self.unverified == "allow" and state in (State.NOT_RUN, State.UNCOMPARED)


def apart(name: str, options: Any) -> dict[str, Any]:
    """Options that name types and have an aim as two artifacts: the types, and what is made for the aim."""
    if not (aim_of(options) and format_of(options).ladder and options.types):
        return {name: options}
    named = replace(options.without_aim(), quality=options.quality)
    return {name: named, f"{name}-sized": replace(options, types=())}


def artifacts_of(
    formats: Iterable[Any], *, calibrated: bool = False, verify: VerifyOptions | None
) -> tuple[AskedArtifact, ...]:
    """An entry for each of some options, called by its format (``gguf``, then ``gguf-2``) where that is free.

    Args:
        calibrated: there is a calibration; formats that are weighted wherever there is one take its matrix.
    """
    made: list[AskedArtifact] = []
    count: Counter[str] = Counter()
    for options in [part for each in formats for part in apart("", each).values()]:
        kind = format_of(options)
        field_name, given = kind.matrix, vars(options)
        if calibrated and field_name is not None and given[field_name] is None and kind.weighted(given):
            options = replace(options, **{field_name: CALIBRATED})
        count[kind.word] += 1
        name = kind.word if count[kind.word] == 1 else f"{kind.word}-{count[kind.word]}"
        made.append(AskedArtifact(name, options, kind.folder(options), verify))
    return tuple(made)


@dataclass(frozen=True)
class HeadTuning:
    """That the MTP head is tuned to the model before anything is exported.

    Attributes:
        text: what the model has written; it is had write some where none is named.
        tokens: how many it writes then.
        options: how to tune.
    """

    text: Path | None = None
    tokens: int = 131072
    options: TuneOptions = field(default_factory=TuneOptions)


@dataclass(frozen=True)
class RecipeModel:
    """A model that the artifacts are made of: the one itself, or the one it is compared with.

    Attributes:
        key: ``model`` or ``compare``.
        given: what files and folders are called; the model's own name when not given.
        tuning: how its head is tuned; ``None``: it is taken as it is.
    """

    key: str
    choice: ModelChoice
    given: str | None = None
    tuning: HeadTuning | None = None

    @property
    def name(self) -> str:
        """In the names of folders."""
        return self.given or model_stem(self.choice.model)


@dataclass(frozen=True)
class Recipe:
    """What is exported: read from a file by :func:`qexport.recipe.load.load_recipe`, or made by a program.

    Attributes:
        subjects: ``model``, and ``compare`` where a base is exported beside it.
        artifacts: in the order in which they are shown.
        calibration: ``None`` where nothing is collected.
        publish: ``None`` where nothing goes to the Hub.
        measure: tokens of held-out text on which artifacts are compared with the source (0: none).
        path: the file, for messages and for whoever sends it elsewhere; ``None``: there is none.
    """

    subjects: tuple[RecipeModel, ...]
    artifacts: tuple[AskedArtifact, ...]
    calibration: Calibration | None = None
    publish: Publication | None = None
    measure: int = MEASURED_TOKENS
    path: Path | None = None

    @property
    def label(self) -> str:
        """What messages call it."""
        return "the recipe" if self.path is None else self.path.name

    @property
    def feels(self) -> bool:
        """Whether sensitivities are collected with the matrix: that is said, or something needs them."""
        needed = (needs_sensitivity(each.options) or each.gates.predicted_ratio for each in self.artifacts)
        return self.calibration is not None and (self.calibration.sensitivity or any(needed))

    def artifact(self, name: str) -> AskedArtifact:
        """The artifact of that name. KeyError: there is none."""
        for each in self.artifacts:
            if each.name == name:
                return each
        raise KeyError(name)

    def subject(self, key: str) -> RecipeModel:
        """``model`` or ``compare``. KeyError: there is none."""
        for each in self.subjects:
            if each.key == key:
                return each
        raise KeyError(key)

    def folder(self, subject: RecipeModel, artifact: AskedArtifact) -> str:
        """The name of the folder that an artifact of a subject goes to."""
        return artifact.folder.replace("{name}", subject.name)

    def repo(self, subject: RecipeModel, artifact: AskedArtifact) -> str | None:
        """The Hub repository of that folder."""
        if self.publish is None:
            return None
        folder = self.folder(subject, artifact)
        named = {"folder": folder, "name": subject.name, "artifact": artifact.name}
        repo = self.publish.repo
        for field_name, value in named.items():
            repo = repo.replace(f"{{{field_name}}}", value)
        return repo
