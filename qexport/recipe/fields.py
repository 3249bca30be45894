"""What may stand at a key: types of fields as pydantic reads them from the words of a YAML file.

Words come with how they are written (:class:`~qexport.checkpoint.yaml_tree.Word`). Text is what stands
there, whatever YAML would make of it; a number or a boolean must look like one, and stand without quotes. A
frozen dataclass becomes a model by its fields and annotations, so an option class of a format is readable in
a recipe as it is, without a schema beside it that could fall behind.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from qexport.assign.assignment import Assignment
from qexport.checkpoint.yaml_tree import Word
from qexport.errors import closest
from qexport.sizes import parse_size

_TRUE, _FALSE = (
    frozenset(("true", "True", "TRUE", "yes", "on")),
    frozenset(("false", "False", "FALSE", "no", "off")),
)
_FAR = 2**63
# What option classes import for type checkers only, so that their module does not know it at run time.
_NAMES = {"Path": Path, "Mapping": Mapping, "Sequence": Sequence, "Assignment": Assignment}
_UNWRITTEN = (type(None), Assignment)
"""What a recipe cannot hold: a field that takes one takes something else, too."""


class Part(BaseModel):
    """A mapping of a recipe. A key that is null is as good as not there."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: each for key, each in value.items() if each is not None or key not in cls.model_fields}


def refuse(said: str) -> PydanticCustomError:
    """An error whose words go to the user as they are."""
    return PydanticCustomError("recipe", "{said}", {"said": said})


def _wanted(value: object, wanted: str) -> PydanticCustomError:
    got = "nothing" if value is None else repr(str(value))[:60]
    if not isinstance(value, str | int | float | None):
        got = "a mapping" if isinstance(value, dict) else "a list"
    quotes = " (put it in quotes)" if wanted == "text" and isinstance(value, Word) else ""
    return refuse(f"{wanted} is expected here, not {got}{quotes}")


def _reader(wanted: str, read: Callable[[Word], Any], given: type) -> BeforeValidator:
    """Words by ``read`` (``None``: it is none); values of a program by their type."""

    def validate(value: Any) -> Any:
        found = read(value) if isinstance(value, Word) else value if isinstance(value, given) else None
        if found is None:
            raise _wanted(value, wanted)
        return found

    return BeforeValidator(validate)


def _flag(word: Word) -> bool | None:
    return None if word.quoted or word not in _TRUE | _FALSE else word in _TRUE


def _text(word: Word) -> str | None:
    return str(word) if _flag(word) is None else None


def _whole(word: Word) -> int | None:
    try:
        number = int(word)
    except ValueError:
        return None
    return None if word.quoted or abs(number) >= _FAR else number


def _number(word: Word) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return None if word.quoted or not math.isfinite(number) else number


def _size(word: Word) -> int | None:
    return parse_size(word.replace("_", ""))


def _limit(word: Word) -> int | None:
    return 0 if word.strip() == "0" else _size(word)


def near(text: Any, info: ValidationInfo) -> Any:
    """A path from the file is relative to it (``folder`` of the context), an override's to the command."""
    if not isinstance(text, Word):
        return text
    assert info.context is not None  # words come from files
    return (info.context["folder"] if text.place.line else Path()) / Path(text).expanduser()


Text = Annotated[
    str,
    _reader("text", _text, str),
    WithJsonSchema({"type": ["string", "number"]}),
]
Whole = Annotated[int, _reader("a whole number", _whole, int)]
Number = Annotated[float, _reader("a number", _number, float)]
Flag = Annotated[bool, _reader("true or false", _flag, bool)]
_SIZE_SCHEMA = WithJsonSchema(
    {"type": ["string", "integer"], "pattern": r"^[0-9_.]+ ?[KMGTkmgt]?[Bb]?$", "examples": ["2G"]}
)
Size = Annotated[int, _reader("a size such as 2G or 500M", _size, int), _SIZE_SCHEMA]
Limit = Annotated[int, _reader("a size such as 2G, or 0 for none", _limit, int), _SIZE_SCHEMA]
Near = Annotated[Path, BeforeValidator(near), WithJsonSchema({"type": "string"})]
_LEAVES: Mapping[Any, Any] = {str: Text, int: Whole, float: Number, bool: Flag, Path: Near}
_MANY = {str: "texts", int: "whole numbers", float: "numbers", Path: "paths"}
_PAIRS = Annotated[dict[str, Text], AfterValidator(lambda found: tuple(found.items()))]


MAPPING = Tag("<mapping>")
ONE = Tag("<one>")
EITHER = Discriminator(lambda value: MAPPING.tag if isinstance(value, dict | BaseModel) else ONE.tag)
"""A mapping, or one value: ``Annotated[Annotated[X, MAPPING] | Annotated[Y, ONE], EITHER]``."""


def choice_of(kind: Any) -> BeforeValidator:
    """One of the words of a ``Literal`` or an enum."""
    members = get_args(kind) or tuple(kind)
    known = {str(getattr(each, "value", each)): each for each in members}

    def choose(value: Any) -> Any:
        if isinstance(value, str) and str(value) in known:
            return known[str(value)]
        if not isinstance(value, Word):
            raise _wanted(value, f"one of {', '.join(known)}")
        guess = closest(value, known)
        guess = guess if guess.startswith("; did") else ""
        raise refuse(f"{str(value)!r:.60} is not one of {', '.join(known)}{guess}")

    return BeforeValidator(choose)


def list_of(wanted: str) -> BeforeValidator:
    """A list; ``wanted`` says of what."""

    def listed(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(value)
        raise _wanted(value, f"a list of {wanted}")

    return BeforeValidator(listed)


def spelled(kind: Any) -> Any:
    """An annotation of a dataclass as a type that reads words."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in _LEAVES:
        return _LEAVES[kind]
    if origin in (Union, types.UnionType):
        (inner,) = [arg for arg in args if arg not in _UNWRITTEN]
        return Optional[spelled(inner)]  # noqa: UP045 - of an expression
    if kind == tuple[tuple[str, str], ...]:
        return _PAIRS
    if origin is tuple and args[-1] is Ellipsis:
        return Annotated[tuple[spelled(args[0]), ...], list_of(_MANY.get(args[0], "values"))]  # type: ignore[misc]
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return Annotated[kind, choice_of(kind)]
    raise TypeError(f"a recipe cannot hold {kind}")


def field_kinds(cls: type, hidden: Collection[str] = ()) -> dict[str, Any]:
    """Field names of a dataclass to their types, without the hidden ones (whose types need not be known)."""
    kinds: dict[str, Any] = {}
    for each in dataclasses.fields(cls):
        if each.name not in hidden:
            owner = next(base for base in cls.__mro__ if each.name in inspect.get_annotations(base))
            own = {"__annotations__": {each.name: each.type}, "__module__": owner.__module__}
            holder = type("_", (), own)
            kinds[each.name] = get_type_hints(holder, localns=dict(_NAMES))[each.name]
    return kinds


def model_of(
    cls: type,
    name: str,
    *,
    hidden: Collection[str] = (),
    own: Mapping[str, Any] | None = None,
) -> type[Part]:
    """A model with the fields of a dataclass.

    Args:
        name: in the JSON Schema.
        hidden: fields that a recipe does not set.
        own: types of fields that the annotation does not say.
    """
    own = dict(own or {})
    kinds = {key: spelled(kind) for key, kind in field_kinds(cls, {*hidden, *own}).items()} | own
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(cls):
        if each.name in kinds:
            bare = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            fields[each.name] = (kinds[each.name], ... if bare else each.default)
    made: type[Part] = create_model(name, __base__=Part, __doc__=cls.__doc__, **fields)
    return made


def given_of(part: Part) -> dict[str, Any]:
    """What a part was given, without what it has by default."""
    return {name: getattr(part, name) for name in part.model_fields_set}


def fields_of(kind: Any, path: Sequence[str | int]) -> list[str]:
    """The keys that the model at ``path`` below an annotation takes."""
    models = _models(kind)
    for step in path:
        if isinstance(step, str) and not step.startswith("<"):
            found = [each.model_fields[step].annotation for each in models if step in each.model_fields]
            models = [model for annotation in found for model in _models(annotation)]
    return [name for model in models for name in model.model_fields]


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for arg in get_args(kind) for model in _models(arg)]
