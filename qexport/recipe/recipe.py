"""A recipe as a value: what is exported from what, how it is proven, and where it goes.

It says *what*, never *where*: threads, devices and output folders belong to the command that runs it, so that
the same recipe gives the same files on a laptop, in CI and in a rented job.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from qexport.checkpoint.yaml_tree import Word
from qexport.doctor.mtp import MtpMode
from qexport.evidence.options import Precision
from qexport.recipe.fields import Flag, Near, Part, Text, Whole, choice_of, list_of, near, refuse
from qexport.recipe.gates import Gates
from qexport.verify.options import VerifyOptions

Unverified = Literal["refuse", "allow"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
"""Names that may stand in file names, job names and on a command line as they are."""

DEMO = "qexport:demo"
"""In a recipe, the model inside the package."""


def _model(text: Any, info: Any) -> Any:
    """A Hub id; or a path, if it begins like one; or the model inside the package."""
    if text == DEMO:
        return str(Path(__file__).parents[1] / "demo" / "model")
    if isinstance(text, Word) and (text.startswith(("./", "../", "~")) or text in (".", "..")):
        return str(near(text, info).resolve())
    return text


def _file_name(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise refuse(f"{name!r} is no name for files and folders: letters, digits, '.', '_', '+', '-'")
    return name


_Model = Annotated[Text, BeforeValidator(_model)]


class Source(Part):
    """A model.

    Attributes:
        model: a Hub id, or a folder: what begins with ./ ../ or ~ is relative to the recipe.
        revision: branch, tag or commit on the Hub.
        name: what files and folders are called; the model's own name when not given.
    """

    model: _Model
    revision: Text | None = None
    name: Annotated[Text, AfterValidator(_file_name)] | None = None


class Mtp(Part):
    """What becomes of the MTP head.

    Attributes:
        mode: auto keeps one that is there and grafts where a base is given.
        base: where one is grafted from: a Hub id, or a folder.
        revision: of the base.
    """

    mode: Annotated[MtpMode, choice_of(MtpMode)] = "auto"
    base: _Model | None = None
    revision: Text | None = None

    @model_validator(mode="after")
    def _base_is_there(self) -> Mtp:
        if self.base is None and (self.mode == "graft" or self.revision is not None):
            what = "mode graft needs a 'base' whose head is taken"
            raise refuse(what if self.mode == "graft" else "a 'revision' without a 'base'")
        return self


class Calibration(Part):
    """What importance is collected with: text, or a matrix that is ready.

    Attributes:
        corpus: a text or records; the built-in corpus when not given.
        tokens: the most that are read.
        chunk: tokens in a chunk; every chunk is read as a text of its own.
        seed: order of the corpus's records.
        precision: arithmetic of the collecting pass.
        imatrix: a matrix that is ready; then nothing else is used.
    """

    corpus: Near | None = None
    tokens: Annotated[Whole, Field(ge=2)] | None = None
    chunk: Annotated[Whole, Field(ge=2, le=1 << 20)] = 512
    seed: Whole = 0
    precision: Annotated[Precision, choice_of(Precision)] = "auto"
    imatrix: Near | None = None

    @model_validator(mode="after")
    def _matrix_alone(self) -> Calibration:
        if self.imatrix is not None and len(self.model_fields_set) > 1:
            raise refuse("'imatrix' is a matrix that is ready: nothing else of calibration is used")
        return self


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
        card: what the model cards say besides.
    """

    repo: Text
    private: Flag = True
    card: Card = Card()


@dataclass(frozen=True)
class Artifact:
    """One entry of ``artifacts``.

    Attributes:
        name: what ``--only`` calls it.
        kind: ``gguf``, ``mlx``, ``fp8``, ``nvfp4`` or ``merged``.
        types: GGUF types; empty for kinds that are one folder.
        options: of the format, without what is only known when it runs.
        importance: whether it is weighted by the calibration.
        folder: template of the folder's name: ``{name}`` is the model's.
        verify: how it is proven; ``None``: not at all, and the receipt says so.
        gates: limits that the run ends with.
        unverified: what becomes of it where nothing is wrong and no runtime at hand could run it, or nothing
            could be compared with the source: ``refuse`` ends the run with an error and publishes nothing,
            ``allow`` publishes it, and its card says so.
    """

    name: str
    kind: str
    types: tuple[str, ...]
    options: Any
    importance: bool
    folder: str
    verify: VerifyOptions | None
    gates: Gates
    unverified: Unverified = "refuse"


@dataclass(frozen=True)
class Subject:
    """A model that the artifacts are made of: the one itself, or the one it is compared with."""

    key: str
    source: Source
    mtp: Mtp
    name: str


@dataclass(frozen=True)
class Recipe:
    """All of a file; made by :func:`qexport.recipe.load.load_recipe`.

    Attributes:
        path: the file, for messages and for whoever sends it elsewhere.
        subjects: ``model``, and ``compare`` where a base is exported beside it.
        calibration: ``None`` where nothing is collected.
        artifacts: in the order of the file.
        publish: ``None`` where nothing goes to the Hub.
        measure: tokens of held-out text on which artifacts are compared with the source (0: none).
    """

    path: Path
    subjects: tuple[Subject, ...]
    calibration: Calibration | None
    artifacts: tuple[Artifact, ...]
    publish: Publication | None
    measure: int = 2048

    def artifact(self, name: str) -> Artifact:
        """The artifact of that name. KeyError: there is none."""
        for each in self.artifacts:
            if each.name == name:
                return each
        raise KeyError(name)

    def subject(self, key: str) -> Subject:
        """``model`` or ``compare``. KeyError: there is none."""
        for each in self.subjects:
            if each.key == key:
                return each
        raise KeyError(key)

    def folder(self, subject: Subject, artifact: Artifact) -> str:
        """The name of the folder that an artifact of a subject goes to."""
        return artifact.folder.replace("{name}", subject.name)

    def repo(self, subject: Subject, artifact: Artifact) -> str | None:
        """The Hub repository of that folder."""
        if self.publish is None:
            return None
        folder = self.folder(subject, artifact)
        named = {"folder": folder, "name": subject.name, "artifact": artifact.name}
        repo = self.publish.repo
        for field_name, value in named.items():
            repo = repo.replace(f"{{{field_name}}}", value)
        return repo
