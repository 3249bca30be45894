"""An assignment: the stored type of each tensor, under canonical names; and the file that keeps one.

Everything that chooses types makes one: llama-quantize's mixtures, scopes, MLX's schemes, patterns and single
options, another file's choice. The plan is made of it. ``--dry-run --json`` prints it, ``--types-from`` reads
it back::

    {"qexport_types": 1, "format": "gguf", "label": "Q4_K_M", "types": {"model.norm.weight": "F32", ...}}

The words are those of the format: ggml's for GGUF, ``6-bit g64`` or ``mxfp4`` for MLX, ``F8_E4M3``,
``NVFP4``; ``plain`` is what is not quantized. What a file does not name gets what the format itself would
choose, and that is said. Left out: how a type is encoded (importance, searches) and where it lies, which are
the plan's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.paths import read_small
from qexport.errors import InputError, UsageProblem, closest, some
from qexport.sizes import counted

if TYPE_CHECKING:
    from pathlib import Path


PLAIN = "plain"
_VERSION = 1
_MAX_BYTES = 1 << 28  # the whole plan of a large mixture of experts, as --dry-run prints it


@dataclass(frozen=True)
class Prediction:
    """What types cost, as it was predicted before anything was written.

    Attributes:
        kld: nats of divergence per token of the model itself.
        draft_kld: likewise of what its MTP head guesses, by errors in the head alone; ``None`` without one.
        aim: what the types were chosen for, in words; empty where they were not.
        notes: what a user should know about the choice.
        key: what the choice follows from, as a hash.
        curve: bytes and nats of what could have been chosen, the smallest first.
    """

    kld: float
    draft_kld: float | None = None
    aim: str = ""
    notes: tuple[str, ...] = ()
    key: str = ""
    curve: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        """``0.00123 nats per token``, and what it is of the MTP head."""
        return f"a divergence of {self.kld:.3g} nats per token"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"kld": self.kld, "draft_kld": self.draft_kld, "aim": self.aim or None}


@dataclass(frozen=True)
class Assignment:
    """Types by canonical tensor name, in the words of ``format``; ``label`` says where they are from.

    Attributes:
        predicted: what they were chosen for, and what they are predicted to cost; ``None``: they were not
            chosen by that.
    """

    format: str
    label: str
    types: Mapping[str, str] = field(repr=False)
    predicted: Prediction | None = None

    def to_json(self) -> dict[str, Any]:
        """The document that :func:`read_types` reads."""
        types = dict(sorted(self.types.items()))
        document = {"qexport_types": _VERSION, "format": self.format, "label": self.label, "types": types}
        return document if self.predicted is None else document | {"predicted": self.predicted.to_json()}

    def check(self, tensors: Collection[str], known: Callable[[str], object]) -> None:
        """See that the assignment is for this model.

        Args:
            tensors: the model's names.
            known: raises QexportError for a type's word that the format does not have.

        Raises:
            InputError: a tensor that the model does not have.
            QexportError: an unknown type.
        """
        strangers = [name for name in self.types if name not in tensors]
        if strangers:
            guess = closest(strangers[0], tensors) if len(strangers) < len(self.types) else ""
            raise InputError(
                f"{self.label} has types for {counted(len(strangers), 'tensor')} that this model does not "
                f"have: {some(strangers, 3)}{guess}",
                hint="It was made for another model.",
            )
        for word in dict.fromkeys(self.types.values()):
            known(word)

    def missing(self, tensors: Collection[str]) -> list[str]:
        """What is said of tensors that the assignment does not name: one line, or none."""
        found = [name for name in tensors if name not in self.types]
        if not found:
            return []
        return [
            f"{self.label} has no type for {counted(len(found), 'tensor')}, and takes the usual: "
            f"{some(found, 4)}"
        ]


def one_of(known: Collection[str]) -> Callable[[str], object]:
    """A check for a format with these words."""

    def check(word: str) -> None:
        if word not in known:
            raise UsageProblem(f"unknown tensor type {word!r}{closest(word, known)}")

    return check


def read_types(path: Path | Assignment, format_word: str) -> Assignment:
    """The assignment in a JSON file: one by itself, or the only one for this format in a printed plan.

    One that is in memory already is for the format that it says.

    Raises:
        InputError: it cannot be read, is something else, or is for another format.
    """
    if isinstance(path, Assignment):
        if path.format != format_word:
            raise InputError(f"{path.label} holds types for {path.format}, not for {format_word}")
        return path
    try:
        document = json.loads(read_small(path, path.name, limit=_MAX_BYTES))
    except (ValueError, RecursionError):
        raise InputError(f"{path.name} is not JSON", hint=_HINT) from None
    found = list(_assignments(document))
    mine = [each for each in found if each["format"] == format_word]
    if len(mine) != 1:
        others = sorted({str(each["format"]) for each in found} - {format_word})
        got = f"{len(mine)} lists of types for {format_word}, not one" if mine else "no types"
        if others and not mine:
            got = f"types for {' and '.join(others)}, not for {format_word}"
        raise InputError(f"{path.name} holds {got}", hint=_HINT)
    version, types = mine[0].get("qexport_types"), mine[0].get("types")
    if version != _VERSION:
        raise InputError(
            f"{path.name} has version {str(version)[:20]} of the types' form, this qexport knows {_VERSION}"
        )
    if not isinstance(types, dict) or not types or not all(isinstance(word, str) for word in types.values()):
        raise InputError(f"{path.name}: types has to be a mapping from tensor names to words", hint=_HINT)
    return Assignment(format_word, path.name, types)


_HINT = "Print one with --dry-run --json; docs/types.md explains the file."


def _assignments(document: object) -> Iterator[dict[str, Any]]:
    """Itself, or those of the artifacts of a printed plan."""
    if not isinstance(document, dict):
        return
    if "qexport_types" in document and isinstance(document.get("format"), str):
        yield document
    artifacts = document.get("artifacts")
    for artifact in artifacts if isinstance(artifacts, list) else ():
        if isinstance(artifact, dict):
            yield from _assignments(artifact.get("assignment"))
