"""A format as one object: everything the rest of the program asks about it, in its own package.

``formats/<word>/format.py`` holds the object; :data:`qexport.formats.registry.FORMATS` lists them. What acts
on artifacts (the runner, verification, the card) goes by these facts and has no table of formats of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.formats.tolerance import Tolerance


class _Calibrated:
    def __repr__(self) -> str:
        return "CALIBRATED"


CALIBRATED: Any = _Calibrated()
"""In options, the matrix of the run: not there yet, but options that need one can be made and checked."""


ATTACHED = frozenset({"imatrix", "mmproj", "mtp"})
"""Kinds of what is no model by itself: importance matrices, llama.cpp's files of towers and MTP heads."""


@dataclass(frozen=True)
class Proof:
    """What runs an artifact in this interpreter when the user names nothing else.

    Attributes:
        module: that has to be installed.
        extra: of qexport's distribution that brings it.
    """

    module: str
    extra: str


@dataclass(frozen=True)
class Words:
    """What a format is called, who reads it and how the Hub knows it: for cards and reports.

    Attributes:
        readers: what it is, in a card's first sentence.
        library: for the Hub, which shows its snippet to use a model with.
        tags: of a repository that holds it.
        program: the section of a card that says how it is run (``llama_cpp``, ``mlx_lm``, ``served``).
        note: what else is to be known there.
        sees: whether it is always written with the source's vision tower; else its plan says so in
            ``details["vision_tensors"]``.
        prefix: of its types in charts, where they do not say the format.
        mark: its shape in charts, a path about (0, 0); a circle for none.
        colours: of its shape, on a light ground and on a dark one.
    """

    name: str
    readers: str
    library: str = ""
    tags: tuple[str, ...] = ()
    program: str = ""
    note: str = ""
    sees: bool = False
    prefix: str = ""
    mark: str = ""
    colours: tuple[str, str] = ("#5b6570", "#a3adb8")


@dataclass(frozen=True)
class Candidates:
    """Between which types an allocator chooses.

    Attributes:
        words: the format's words, the same for all tensors that are chosen for.
        groups: canonical names of the tensors that are chosen for, those together that have one type; what is
            in none keeps what the format gives it.
        barred: by the first name of a group, words that it may not have (a floor).
        floors: what is barred, in words.
        enough: bytes of all tensors below which other types are worth their time.
        others: those, in words, where they are not offered.
    """

    words: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    barred: Mapping[str, frozenset[str]] = field(default_factory=dict)
    floors: tuple[str, ...] = ()
    enough: int = 0
    others: str = ""

    def all_as(self, word: str) -> dict[str, str]:
        """The types of all tensors that may have this one."""
        may = (names for names in self.groups if word not in self.barred.get(names[0], ()))
        return {name: word for names in may for name in names}


@dataclass(frozen=True)
class Sizing:
    """How an artifact is made for a size. The options are an :class:`~qexport.assign.aim.Aimed`.

    While they have an aim and no assignment, ``Format.plan`` gives a stand-in with the names of the files to
    come and about their size. An assignment in them as ``types_from`` is followed; its label is what
    :attr:`label` gave.

    Attributes:
        candidates: between which types is chosen, for which tensors.
        plain: the options of the artifact that ``like`` names, without an aim.
        label: what an artifact with so many bytes of tensors is called.
        best: of options that ask for the best of each type that they name: options of one file each, with
            ``like``, or plain ones where a type leaves nothing to choose. ``None``: ``like`` has to be given.
    """

    candidates: Callable[[Diagnosis, Any], Candidates]
    plain: Callable[[Any, str], Any]
    label: Callable[[Diagnosis, Any, int], str]
    best: Callable[[Any], tuple[Any, ...]] | None = None


@dataclass(frozen=True)
class Format:
    """What there is to know of a format.

    Attributes:
        word: the command, the key in recipes, the kind in receipts.
        options: the frozen dataclass of its choices; its fields are the keys of a recipe.
        plan: from a diagnosed checkpoint and the options. Reads no tensor data.
        folder: the folder's name for some options, with ``{name}`` for the model's.
        bits: bits per weight for a size that is guessed, by options and type of a ladder.
        guess: the stored type that an estimate of time goes by, for a folder.
        proof: what runs it here.
        layouts: the ways in which it lies on disk, and is read back.
        layout_word: which of them some options write.
        words: for people.
        tolerances: how far its stored types may be from the source, by patterns that no other format's match.
        rates: million weights per second and core by stored type, with and without importance; see
            ``run/rates.py``.
        ladder: its options have ``types``, each a file of its own in one folder; otherwise it is one folder.
        matrix: the field that takes an importance matrix.
        weighted: whether importance is used where the user does not say, from the fields that were given.
        sizes: fields that are bytes; limits: such as may be 0, for none.
        shown: the options that ``inspect`` says the size of, by what it calls them.
        check: raises what the option class does not check itself.
        beside: by kind of a plan, what is added to the folder's name for it (MLX's drafter).
        alongside: files that its artifacts are used with and that no runtime runs by themselves
            (:data:`ATTACHED`), in the same folder.
        inside: places of an MTP head that are in the folder itself; ``None``: all are.
        sizing: how it is made for a size, where it can be.
    """

    word: str
    options: type
    plan: Callable[[Diagnosis, Any], Sequence[ArtifactPlan]]
    folder: Callable[[Any], str]
    bits: Callable[[Any, str], float]
    proof: Proof
    layouts: Callable[[], Sequence[ArtifactLayout]]
    layout_word: Callable[[Any], str]
    words: Words
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    guess: str = ""
    ladder: bool = False
    matrix: str | None = None
    weighted: Callable[[Mapping[str, Any]], bool] = lambda _: False
    sizes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Any], object] = lambda _: None
    beside: Mapping[str, str] = field(default_factory=dict)
    alongside: Callable[[Diagnosis, Any], Sequence[ArtifactPlan]] = lambda _, __: ()
    inside: frozenset[str] | None = None
    sizing: Sizing | None = None

    @property
    def hidden(self) -> tuple[str, ...]:
        """Fields that a recipe does not set: evidence is collected, or named once for all artifacts."""
        return () if self.matrix is None else (self.matrix,)

    def layout(self, options: Any) -> ArtifactLayout:
        """What these options write."""
        return next(each for each in self.layouts() if each.word == self.layout_word(options))
