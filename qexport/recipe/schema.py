"""What a recipe may hold, as one model, and what it says of values that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, create_model, model_validator

from qexport.checkpoint.yaml_tree import Word
from qexport.doctor.mtp import MtpMode
from qexport.errors import closest
from qexport.headtune.options import Mode, TrainOptions, TuneOptions
from qexport.recipe.artifact import Entry, Verify
from qexport.recipe.choice import ModelChoice
from qexport.recipe.fields import (
    Near,
    Number,
    Part,
    Text,
    Whole,
    choice_of,
    fields_of,
    given_of,
    list_of,
    model_of,
    near,
    refuse,
)
from qexport.recipe.gates import Gates
from qexport.recipe.problems import Problems, Steps
from qexport.recipe.recipe import NAME, Calibration, HeadTuning, Publication, RecipeModel
from qexport.verification.options import MEASURED_TOKENS

HeadMode = Literal["auto", "keep", "graft", "drop", "tune"]
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


class SourceModel(Part):
    """A model.

    Attributes:
        model: a Hub id, or a folder: what begins with ./ ../ or ~ is relative to the recipe.
        revision: branch, tag or commit on the Hub.
        name: what files and folders are called; the model's own name when not given.
    """

    model: _Model
    revision: Text | None = None
    name: Annotated[Text, AfterValidator(_file_name)] | None = None

    def subject(
        self, key: str, mtp: Mtp | None = None, vision: Vision | None = None, base: Base | None = None
    ) -> RecipeModel:
        """As a value."""
        mtp, vision = mtp or Mtp(), vision or Vision()
        choice = ModelChoice(
            self.model,
            self.revision,
            mtp.tower_mode,
            mtp.base,
            mtp.revision,
            vision.mode,
            vision.base,
            vision.revision,
            None if base is None else base.model,
            None if base is None else base.revision,
        )
        return RecipeModel(key, choice, self.name, mtp.tuning)


class Base(Part):
    """The model that was fine-tuned.

    Attributes:
        model: a Hub id, or a folder: what begins with ./ ../ or ~ is relative to the recipe.
        revision: branch, tag or commit on the Hub.
    """

    model: _Model
    revision: Text | None = None


class Vision(Part):
    """What becomes of the vision tower.

    Attributes:
        mode: auto keeps one that is there, and grafts where there is a base with one that fits.
        base: where one is grafted from: a Hub id, or a folder; that of the MTP head when not given.
        revision: of the base.
    """

    mode: Annotated[MtpMode, choice_of(MtpMode)] = "auto"
    base: _Model | None = None
    revision: Text | None = None

    @model_validator(mode="after")
    def _base_is_there(self) -> Self:
        if self.base is None and self.revision is not None:
            raise refuse("a 'revision' without a 'base'")
        return self


class Mtp(Vision):
    """What becomes of the MTP head.

    Attributes:
        mode: auto keeps one that is there and grafts where a base is given; tune does either, and tunes the
            head to the model before anything is exported.
        base: where one is grafted from: a Hub id, or a folder.
        revision: of the base.
        text: with tune: what the model has written; without it, it is had write some.
        tokens: with tune: how many it writes.
        drafts: with tune: how the runtime drafts.
        depth: with tune: most drafts of a verification.
        epochs: with tune: times that the text is read.
        steps: with tune: exactly so many steps.
        rate: with tune: the learning rate; probed where it is not given.
        seed: with tune: same seed, same bits.
        generic: with tune: share of the text that is the package's own.
    """

    mode: Annotated[HeadMode, choice_of(HeadMode)] = "auto"  # type: ignore[assignment]
    text: Near | None = None
    tokens: Annotated[Whole, Field(ge=1)] = HeadTuning.tokens
    drafts: Annotated[Mode, choice_of(Mode)] = TrainOptions.mode
    depth: Annotated[Whole, Field(ge=1, le=4)] = TrainOptions.depth
    epochs: Annotated[Whole, Field(ge=1)] = TrainOptions.epochs
    steps: Annotated[Whole, Field(ge=1)] | None = None
    rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[Whole, Field(ge=0)] = TrainOptions.seed
    generic: Annotated[Number, Field(ge=0, le=0.9)] = TuneOptions.generic

    @model_validator(mode="after")
    def _tuned_or_not(self) -> Self:
        more = self.model_fields_set - {"mode", "base", "revision"}
        if more and self.mode != "tune":
            raise refuse(f"{min(more)!r} goes with 'mode: tune'")
        return self

    @property
    def tower_mode(self) -> MtpMode:
        """What becomes of the head before it is tuned."""
        if self.mode != "tune":
            return self.mode
        return "auto" if self.base is None else "graft"

    @property
    def tuning(self) -> HeadTuning | None:
        """As a value."""
        if self.mode != "tune":
            return None
        train = TrainOptions(self.drafts, self.depth, self.epochs, self.steps, rate=self.rate, seed=self.seed)
        return HeadTuning(self.text, self.tokens, TuneOptions(train, self.generic))


def _matrix_alone(part: Part) -> Part:
    others = part.model_fields_set - {"imatrix", "feedback_text", "feedback_tokens", "heldout"}
    if given_of(part).get("imatrix") is not None and others:
        raise refuse("'imatrix' is a matrix that is ready: nothing else of calibration is used")
    return part


_CALIBRATION = model_of(
    Calibration,
    "Calibration",
    hidden=("merge",),
    own={
        "tokens": Annotated[Whole, Field(ge=2)] | None,
        "chunk": Annotated[Whole, Field(ge=2, le=1 << 20)],
        "sensitivity_tokens": Annotated[Whole, Field(ge=2)],
        "feedback_tokens": Annotated[Whole, Field(ge=2)],
    },
)
_Calibration: Any = Annotated[_CALIBRATION, AfterValidator(_matrix_alone)]


class _File(Part):
    """A recipe: what is exported from what, how it is proven, and where it goes.

    Attributes:
        source: the model.
        compare: a base that gets the same artifacts, with the same settings and text.
        base: the model that was fine-tuned: MTP head and vision tower are taken of it where they are lost.
        mtp: what becomes of the MTP head.
        vision: what becomes of the vision tower.
        calibration: without it nothing is weighted by importance.
        artifacts: what is to be written, all from one read.
        verify: how all artifacts are proven; false: not at all.
        measure: held-out tokens on which artifacts are compared with the source; 0: not.
        gates: limits for every artifact.
        publish: where folders go on the Hub.
    """

    source: SourceModel
    compare: SourceModel | None = None
    base: Base | None = None
    mtp: Mtp = Mtp()
    vision: Vision = Vision()
    measure: Annotated[Whole, Field(ge=0, le=1 << 30)] = MEASURED_TOKENS
    gates: Gates = Gates()
    publish: Publication | None = None


_Entries: Any = Annotated[tuple[Entry, ...], list_of("artifacts"), Field(min_length=1)]
File: Any = create_model(
    "Recipe",
    __base__=_File,
    __doc__=_File.__doc__,
    calibration=(_Calibration | None, None),
    verify=(Verify, None),
    artifacts=(_Entries, ...),
)
"""The whole file, but for what spans its parts."""
_MISSING = {
    "source": ": which model? (source: {model: org/name})",
    "artifacts": ": a list of what is to be written",
}


def note(error: ValidationError, problems: Problems) -> list[Steps]:
    """Note everything that pydantic found; returns where, in the tree's own paths."""
    paths: list[Steps] = []
    for each in error.errors(include_url=False):
        path = tuple(step for step in each["loc"] if not str(step).startswith("<"))
        paths.append(path)
        problems.at(path, _said(each["type"], path, each), key=each["type"] == "extra_forbidden")
    return paths


def _outside(path: Steps) -> str:
    """``; it stands beside 'nvfp4', not in it``; empty where nothing around has the key."""
    for depth in reversed(range(len(path) - 1)):
        if path[-1] in fields_of(File, path[:depth]):
            return f"; it stands beside {str(path[depth])!r}, not in it"
    return ""


def _said(kind: str, path: Steps, error: Any) -> str:
    last = str(path[-1]) if path else ""
    limits = error.get("ctx") or {}
    if kind in ("missing", "too_short"):
        return f"{last!r} is missing{_MISSING.get(last, '')}"
    if kind == "extra_forbidden":
        return f"unknown key {last!r}{_outside(path) or closest(last, fields_of(File, path[:-1]))}"
    if kind in ("model_type", "dict_type"):
        keys = ", ".join(fields_of(File, path))
        return "a mapping is expected here" + (f", with keys such as {keys}" if keys else "")
    if kind == "greater_than_equal":
        return f"{last} must " + (f"be {limits['ge']} at least" if limits["ge"] else "not be negative")
    if kind == "less_than_equal":
        return f"{last} must be " + (f"{limits['le']} at most" if limits["le"] != 1 else "a share, 1 at most")
    return str(error["msg"])
