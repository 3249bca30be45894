"""One entry of ``artifacts``: its kind, the options of its format, its importance, verification and gates."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

from pydantic import AfterValidator, Field, WithJsonSchema, create_model, model_validator

from qexport.assign.aim import AIMS
from qexport.errors import QexportError, closest
from qexport.formats.format import CALIBRATED
from qexport.formats.gguf.file_types import FILE_TYPES, file_type
from qexport.formats.registry import FORMATS
from qexport.recipe.fields import (
    EITHER,
    MAPPING,
    ONE,
    Flag,
    Limit,
    Number,
    Part,
    Size,
    Text,
    Whole,
    choice_of,
    given_of,
    list_of,
    model_of,
    refuse,
)
from qexport.recipe.gates import Gates
from qexport.recipe.recipe import NAME, AskedArtifact, Unverified
from qexport.verification.options import VerifyOptions

if TYPE_CHECKING:
    from qexport.recipe.problems import Problems


def _type(word: str) -> str:
    try:
        return file_type(word).name
    except QexportError as error:
        known = (error.hint or "").removeprefix("known types: ").split(", ")
        raise refuse(error.message + closest(word, known)) from None


def _artifact_name(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise refuse(f"{name!r} is no name for an artifact: letters, digits, '.', '_', '+', '-'")
    return name


def _folder_name(folder: str) -> str:
    if NAME.fullmatch(folder.replace("{name}", "x")) is None:
        raise refuse(f"{folder!r} is no name for a folder; it may hold {{name}}")
    return folder


_Type = Annotated[
    Text,
    AfterValidator(_type),
    WithJsonSchema({"anyOf": [{"enum": sorted(FILE_TYPES)}, {"type": "string"}]}),
]
_Types = Annotated[tuple[_Type, ...], list_of("types such as [Q4_K_M, Q8_0]"), Field(min_length=1)]
_VERIFY = model_of(
    VerifyOptions,
    "Verify",
    # Of the machine, not of the recipe; limits are the table's, and what a recipe adds are its gates.
    hidden=("limits", "threads", "llama_server", "runtime_python"),
    own={
        "n_predict": Annotated[Whole, Field(ge=1, le=4096)],
        "n_probs": Annotated[Whole, Field(ge=1, le=1024)],
        "draft_max": Annotated[Whole, Field(ge=1, le=16)],
        "context": Annotated[Whole, Field(ge=1, le=1 << 20)],
        "mtp_tie": Annotated[Number, Field(ge=0)],
        "time_limit": Annotated[Number, Field(ge=1)],
    },
)
Verify: Any = Optional[Annotated[Annotated[_VERIFY, MAPPING] | Annotated[Flag, ONE], EITHER]]  # noqa: UP045
"""``verify``: options, or whether at all."""
_OPTIONS = {
    word: model_of(
        kind.options,
        word.upper(),
        hidden=kind.hidden,
        own={
            **dict.fromkeys(kind.sizes, Size | None),
            **dict.fromkeys(kind.limits, Limit | None),
            **({"types": _Types} if kind.ladder else {}),
        },
    )
    for word, kind in FORMATS.items()
}


class _Around(Part):
    """One artifact: exactly one of gguf, mlx, fp8, nvfp4, merged, and what is said around it.

    Attributes:
        name: what --only calls it; the kind if left out.
        importance: whether it is weighted by the calibration; GGUF is, where there is one.
        folder: of the artifact below --out; {name} is the model's.
        verify: how it is proven, over what is said for all; false: not at all.
        unverified: refuse (the default) ends the run with an error where nothing could run it, or compare it
            with its source; allow publishes it, and its card says so.
        gates: limits, over those for all.
    """

    name: Annotated[Text, AfterValidator(_artifact_name)] | None = None
    importance: Flag | None = None
    folder: Annotated[Text, AfterValidator(_folder_name)] | None = None
    unverified: Annotated[Unverified, choice_of(Unverified)] = "refuse"
    gates: Gates | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise refuse(f"an artifact is expected here: a mapping with one of {', '.join(FORMATS)}")
        named = [key for key in value if key in FORMATS]
        if len(named) != 1:
            got = f"not {' and '.join(named)}" if named else "and there is none"
            raise refuse(f"an artifact has one of {', '.join(FORMATS)}, {got}")
        # `- fp8:` is an artifact with nothing to say about it.
        return {key: {} if each is None and key in FORMATS else each for key, each in value.items()}


_KEYS: dict[str, Any] = {word: (model | None, None) for word, model in _OPTIONS.items()}
Entry: Any = create_model(
    "Artifact", __base__=_Around, __doc__=_Around.__doc__, verify=(Verify, None), **_KEYS
)
"""An entry as it stands in the file."""


@dataclass(frozen=True)
class Defaults:
    """What the recipe says for all artifacts."""

    calibrated: bool
    verify: VerifyOptions | None
    gates: Gates


def verification(given: Any, base: VerifyOptions | None) -> VerifyOptions | None:
    """Options of ``verify:`` over those that hold where nothing is said; ``false`` is ``None``."""
    if given is None or given is True:
        return base if given is None else base or VerifyOptions()
    return None if given is False else replace(base or VerifyOptions(), **given_of(given))


def to_artifact(entry: Any, number: int, defaults: Defaults, problems: Problems) -> AskedArtifact | None:
    """The artifact, or ``None`` after noting what does not go together."""
    at, before = ("artifacts", number), len(problems)
    word = next(word for word in FORMATS if getattr(entry, word) is not None)
    kind, given = FORMATS[word], given_of(getattr(entry, word))
    types = given.get("types", ())
    for place, name in enumerate(types):
        if name in types[:place]:
            problems.at((*at, word, "types", place), f"{name} is there twice")
    aims = [key for key in AIMS if given.get(key) is not None]
    if kind.ladder and not types and not aims:
        words = "'types' is missing: a list such as [Q4_K_M, Q8_0]; or one of "
        problems.at((*at, word), f"{words}{', '.join(AIMS)}")
    elif types and aims:
        problems.at((*at, word), f"types and {aims[0]} are two artifacts; give each an entry and a 'name'")
    importance = entry.importance
    if importance is None:
        importance = kind.matrix is not None and defaults.calibrated and kind.weighted(given)
    elif importance and kind.matrix is None:
        problems.at((*at, "importance"), f"{word} has no use for importance")
    elif importance and not defaults.calibrated:
        problems.at((*at, "importance"), "importance needs a 'calibration:' in the recipe")
    own = entry.gates or Gates()
    for limit, key in own.types():
        if key not in types:
            problems.at(
                (*at, "gates", limit, key),
                f"{key!r} is no type of this artifact{closest(key, types)}",
                key=True,
            )
    matrix = {kind.matrix: CALIBRATED} if kind.matrix is not None and importance else {}
    try:
        options = kind.options(**given, **matrix)
        kind.check(options)
    except QexportError as error:
        # Option classes speak of the command line's options: --mtp-layout is the key mtp_layout here.
        text = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
        problems.at((*at, word), re.sub(r"--([a-z][a-z0-9-]*)", lambda m: m[1].replace("-", "_"), text))
        return None
    if len(problems) > before:
        return None
    verify = verification(entry.verify, defaults.verify)
    folder = entry.folder or kind.folder(options)
    gates = own.over(defaults.gates)
    return AskedArtifact(entry.name or word, options, folder, verify, gates, entry.unverified)
