"""A recipe as a value: what is exported from what, how it is proven, and where it goes.

It says *what*, never *where*: threads, devices and output folders belong to the command that runs it, so that
the same recipe gives the same files on a laptop, in CI and in a rented job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.calibrate.options import Precision
from qexport.doctor.mtp import MtpMode
from qexport.recipe.gates import Gates

if TYPE_CHECKING:
    from qexport.recipe.problems import Place
    from qexport.verify.options import VerifyOptions

__all__ = ["Artifact", "Calibration", "Card", "Mtp", "Publication", "Recipe", "Source", "Subject"]


@dataclass(frozen=True)
class Source:
    """A model.

    Attributes:
        model: a Hub id, or a folder (relative to the recipe).
        revision: branch, tag or commit on the Hub.
        name: what files and folders are called; the model's own name when not given.
    """

    model: str
    revision: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Mtp:
    """What becomes of the MTP head; ``base`` is where one is grafted from."""

    mode: MtpMode = "auto"
    base: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Calibration:
    """What importance is collected with: text, or (``imatrix``) a matrix that is ready.

    Attributes:
        corpus: a text or records; the built-in corpus when not given.
        tokens, chunk, seed, precision: as of ``qexport imatrix``.
    """

    corpus: Path | None = None
    tokens: int | None = None
    chunk: int = 512
    seed: int = 0
    precision: Precision = "auto"
    imatrix: Path | None = None


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
        place: where it stands, for messages.
    """

    name: str
    kind: str
    types: tuple[str, ...]
    options: Any
    importance: bool
    folder: str
    verify: VerifyOptions | None
    gates: Gates
    place: Place = field(compare=False)


@dataclass(frozen=True)
class Card:
    """What a model card says that receipts cannot know; the Hub's own keys."""

    base_model: str | None = None
    quantized_by: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()

    def front_matter(self) -> dict[str, Any]:
        """What was given, as front matter that outranks the source's own."""
        chosen = {
            "license": self.license,
            "license_name": self.license_name,
            "license_link": self.license_link,
            "language": list(self.language),
            "pipeline_tag": self.pipeline_tag,
            "tags": list(self.tags),
        }
        return {key: value for key, value in chosen.items() if value}


@dataclass(frozen=True)
class Publication:
    """Where folders go on the Hub.

    Attributes:
        repo: template: ``{folder}`` is the folder's name, ``{name}`` the model's, ``{artifact}`` the entry's.
        private: leave the repositories private when everything has passed.
        card: see :class:`Card`.
    """

    repo: str
    private: bool = True
    card: Card = field(default_factory=Card)


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
