"""The vision tower: keep it, take the base's, or leave it out; afterwards tensors and config agree.

A model that was tuned on text alone is often saved without its tower, which the base still has, bit for bit.
As with the MTP head, what is right then is the user's choice:

=========  ===================================================================================================
``auto``   keep a tower that is there; with a base and no tower, graft
``keep``   the tower has to be there
``graft``  take the base's, also in place of one that is there
``drop``   none: the text-only form
=========  ===================================================================================================

What comes out is another subject: all quirks are looked for in the form that the checkpoint is to have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qexport.checkpoint.chat_templates import TEMPLATE_FILE
from qexport.checkpoint.config import text_config
from qexport.checkpoint.tensors import LogicalTensor
from qexport.doctor.draft import PROCESSOR_FILES
from qexport.doctor.finding import Breaks, Finding
from qexport.doctor.form import flat_config, seeing_config
from qexport.doctor.graft import TowerMode, setting_reasons, tower_problems
from qexport.doctor.kinship import strangers
from qexport.doctor.subject import EMBEDDING, Subject
from qexport.doctor.tokens import token_ids
from qexport.errors import UsageProblem
from qexport.families.hyper import resolve
from qexport.families.names import SpelledName
from qexport.families.roles import Block
from qexport.families.vision import image_tokens
from qexport.sizes import counted

VisionMode = TowerMode
_WAYS_OUT = "`--vision-from BASE` takes the base model's tower, `--vision drop` exports without one."
_GRAFTED = (
    Breaks("llama.cpp, mlx-vlm, vLLM", "no images: the text-only form has no tower, and no projector"),
)
# How the language model places an image's tokens.
_ROPE = ("mrope_section", "mrope_interleaved")


@dataclass(frozen=True)
class VisionResult:
    """What became of the tower.

    Attributes:
        subject: the checkpoint as it is to be repaired: with the tower, or without.
        origin: ``own``, ``none``, ``dropped``, or ``grafted from <label>``.
        files: small files that go with it; ``None`` for one that is left out.
    """

    subject: Subject
    origin: str
    findings: tuple[Finding, ...] = ()
    files: Mapping[str, bytes | None] = field(default_factory=dict)


def settle_vision(subject: Subject, mode: VisionMode, base: Subject | None, *, named: bool) -> VisionResult:
    """Bring ``subject`` into the form that ``mode`` asks for.

    Args:
        named: the base was named for the tower; otherwise what does not fit is left alone.

    Raises:
        UsageProblem: a graft without a base, or in a family that has no towers.
    """
    whole = subject.wants_wrapper
    if mode == "graft" and (base is None or subject.family.vision is None):
        _refuse(subject)
    if mode == "drop":
        return _drop(subject)
    wanted = mode == "graft" or (mode == "auto" and not whole)
    if wanted and base is not None and subject.family.vision is not None:
        return _graft(subject, base, keep=mode == "auto", named=named or mode == "graft")
    if mode == "keep" and not whole:
        what = "--vision keep, but there is no vision tower that config.json describes"
        return VisionResult(subject, "none", (Finding("vision.none", "error", what, (), _WAYS_OUT),))
    return VisionResult(subject, "own" if whole else "none")


def _refuse(subject: Subject) -> None:
    if subject.family.vision is None:
        raise UsageProblem(
            f"the family {subject.family.name} has no vision tower: there is nothing to graft.",
            hint="Leave --vision and --vision-from out.",
        )
    raise UsageProblem(
        "--vision graft needs the checkpoint to take the tower from.",
        hint="Add `--vision-from BASE`: the model that was fine-tuned, a folder or a Hub id.",
    )


def _drop(subject: Subject) -> VisionResult:
    if not subject.says_wrapper and not subject.vision:
        return VisionResult(subject, "none")
    if subject.foreign is not None:  # its language model alone is written anyway
        return VisionResult(subject, "dropped")
    count = len(subject.vision)
    bare = _with(subject, flat_config(subject.config, subject.family), {}, {})
    what = (
        f"the vision tower is left out ({counted(count, 'tensor')})"
        if count
        else "the text-only form is asked for"
    )
    repair = "The text-only form is written: flat config, text names, no processor files."
    files = {name: None for name in PROCESSOR_FILES if name in subject.checkpoint.files}
    found = Finding("vision.dropped", "repaired", what, (), repair)
    return VisionResult(bare, "dropped", (found,), files)


def _graft(subject: Subject, base: Subject, *, keep: bool, named: bool) -> VisionResult:
    label = base.checkpoint.label
    if reasons := misfits(subject, base):
        what = f"the vision tower of {label} does not fit: " + "; ".join(reasons)
        if named:
            repair = "Name the model that was fine-tuned with --vision-from; `--vision drop` exports without."
            return VisionResult(subject, "none", (Finding("vision.misfit", "error", what, (), repair),))
        if not base.vision:  # it is a base for the head alone
            return VisionResult(subject, "none")
        repair = "Nothing is taken of it: the base was named for the MTP head."
        return VisionResult(subject, "none", (Finding("vision.misfit", "note", what, (), repair),))
    config = seeing_config(subject.config, base.config, subject.family)
    own = {name: subject.tensors[name] for name in subject.vision}
    if keep and own and not tower_problems(resolve(subject.family, subject.text), own, config, Block.VISION):
        spelled = {stored: each for stored, each in subject.spellings.items() if each.vision}
        what = f"there are {len(own)} vision tensors and no vision_config; that of {label} fits them"
        found = Finding("vision.described", "repaired", what, (), "It is written, with the ids of an image.")
        return VisionResult(_with(subject, config, own, spelled), "own", (found,))
    tower = {name: base.tensors[name] for name in base.vision}
    spelled = {stored: each for stored, each in base.spellings.items() if each.vision}
    instead = "in place of the one that is there" if own else "the checkpoint has none"
    what = f"the vision tower of {label} is grafted ({counted(len(tower), 'tensor')}; {instead})"
    repair = "Copied bit for bit, with its config; it is right if tuning left the tower alone."
    found = Finding("vision.grafted", "repaired", what, () if own else _GRAFTED, repair)
    files, notes = _template(subject, base)
    notes += strangers(subject, base, "vision")
    return VisionResult(
        _with(subject, config, tower, spelled), f"grafted from {label}", (found, *notes), files
    )


def _with(
    subject: Subject,
    config: dict[str, Any],
    tower: Mapping[str, LogicalTensor],
    spelled: Mapping[str, SpelledName],
) -> Subject:
    """The subject with this config, and this tower in place of its own."""
    text = {name: each for name, each in subject.tensors.items() if name not in subject.vision}
    spellings = {stored: each for stored, each in subject.spellings.items() if not each.vision}
    return replace(
        subject,
        config=config,
        text=text_config(config),
        tensors={**text, **tower},
        spellings={**spellings, **spelled},
    )


def misfits(subject: Subject, base: Subject) -> list[str]:
    """Every reason why the base's tower cannot serve this model; empty if it can."""
    if base.family is not subject.family:
        return [f"the base is {base.family.name}, this model is {subject.family.name}"]
    if subject.foreign is not None:
        return [f"this model is {subject.foreign!r}, whose towers are not known"]
    if not base.wants_wrapper:
        return [f"{base.checkpoint.label} has no vision tower itself"]
    tower = {name: base.tensors[name] for name in base.vision}
    hyper = resolve(subject.family, subject.text)
    reasons = tower_problems(hyper, tower, base.config, Block.VISION)
    return [*reasons, *setting_reasons(subject, base, (), _ROPE), *_token_reasons(subject, base)]


def _token_reasons(subject: Subject, base: Subject) -> Iterator[str]:
    """Tokens that stand for an image have to be the same here."""
    mine, theirs = token_ids(subject), {number: token for token, number in token_ids(base).items()}
    rows = subject.tensors[EMBEDDING].shape[0] if EMBEDDING in subject.tensors else 0
    for key, number in image_tokens(base.family, base.config).items():
        token = theirs.get(number)
        if number >= rows:
            yield f"{key} is {number}, and the embedding has {rows} rows"
        elif mine and token is not None and mine.get(token) != number:
            yield f"{token!r} ({key}) is {number} in the base and {mine.get(token, 'no token')} here"


def _template(subject: Subject, base: Subject) -> tuple[dict[str, bytes | None], list[Finding]]:
    """The base's chat template, where there is none here; a note on one that knows no images."""
    texts = {number: token for token, number in token_ids(base).items()}
    words = [texts[number] for number in image_tokens(base.family, base.config).values() if number in texts]
    theirs, mine = base.templates.default, subject.templates.default
    if not _knows(theirs, words) or _knows(mine, words):
        return {}, []
    assert theirs is not None
    if mine is None:
        what = f"there is no chat template, and that of {base.checkpoint.label} says where an image goes"
        found = Finding("vision.template_taken", "repaired", what, (), "It is written with the tower.")
        return {TEMPLATE_FILE: theirs.encode()}, [found]
    what = "the chat template knows no images; that of the base does"
    repair = "Kept, as the model was tuned with it. Prompts with images are as the base's template has them."
    breaks = (Breaks("transformers, vLLM", "an image in a conversation is left out of the prompt"),)
    return {}, [Finding("vision.template", "note", what, breaks, repair)]


def _knows(template: str | None, words: list[str]) -> bool:
    return template is not None and any(word in template for word in words)
