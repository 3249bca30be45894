"""One spelling for the many that checkpoints use.

The same tensor is ``model.layers.0...`` in a text-only save, ``model.language_model.layers.0...`` in a
published Qwen3.5, ``language_model.model.layers.0...`` in older multimodal and MLX layouts, and a MTP head
beside the model is ``mtp.*``, ``model.mtp.*`` or deeper. Training adds the names of what it wrapped the model
in, in front (``module.``, ``base_model.model.``, ``pretrained_model.``) and between parts
(``_fsdp_wrapped_module.``, ``.base_layer.``), stacked in any order. This module maps all of them to the
text-only spelling and says which wrapping it found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from qexport.families.family import Family
from qexport.families.known import FAMILIES

VISION_NAMES = ("visual.", "vision_tower.", "vision_model.", "multi_modal_projector.")
"""What canonical names of vision tensors begin with."""
# What wraps a module while it is trained, in front of names and in the middle: torch.compile, FSDP and
# activation checkpointing, DDP and DeepSpeed, Lightning, trl's models with a value head.
_WRAPPERS = frozenset(
    (
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_fpw_module",
        "_forward_module",
        "module",
        "pretrained_model",
    )
)
# What PEFT leaves when a model is saved without unwrapping it.
_PEFT_FRONT, _PEFT_MIDDLE = ["base_model", "model"], "base_layer"
_BARE = ("layers.", "embed_tokens.", "norm.")
_LANGUAGE = ("model.", "language_model.", "text_model.")  # the last in Idefics 3 and SmolVLM
_TRUNK = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
# Buffers that old conversions stored; every reader recomputes them.
_IGNORABLE = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
_EXPERT = re.compile(r"\.mlp\.experts\.")


@dataclass(frozen=True)
class SpelledName:
    """A canonical name and how it was spelled.

    ``prefix`` is what stood in front of the language model (``model.``, ``model.language_model.``,
    ``language_model.model.`` ...) or the head, ``""`` for names that need none. ``mtp``: of a head beside the
    trunk; one behind it has the trunk's names. ``peft`` and ``wrapped``: names of PEFT's and of other
    wrappers were in it.
    """

    canonical: str
    prefix: str
    vision: bool = False
    mtp: bool = False
    peft: bool = False
    wrapped: bool = False


@cache
def heads_beside() -> tuple[str, ...]:
    """What names of MTP heads begin with, in families that keep theirs beside the trunk."""
    heads = (family.head for family in FAMILIES.values())
    return tuple({head.prefix for head in heads if head is not None and not head.behind})


def canonical_name(stored: str) -> SpelledName:
    """The text-only spelling of a stored tensor name.

    >>> canonical_name("model.language_model.layers.3.mlp.gate.weight").canonical
    'model.layers.3.mlp.gate.weight'
    >>> canonical_name("model.mtp.fc.weight").canonical
    'mtp.fc.weight'
    >>> canonical_name("module._orig_mod.model.layers.3._fsdp_wrapped_module.mlp.gate.weight").canonical
    'model.layers.3.mlp.gate.weight'
    """
    given = stored.split(".")
    parts = [part for part in given if part not in _WRAPPERS]
    wrapped, count = len(parts) < len(given), len(parts)
    while parts[:2] == _PEFT_FRONT:
        parts = parts[2:]
    parts = [part for part in parts if part != _PEFT_MIDDLE]
    peft = len(parts) < count
    name = ".".join(parts)
    rest = name
    while rest.startswith(_LANGUAGE):
        rest = rest.split(".", 1)[1]
    prefix = name[: len(name) - len(rest)]
    # Stacked experts, as mlx-lm has them: the model view's own layout under another name.
    rest = rest.replace(".mlp.switch_mlp.", ".mlp.experts.")
    if rest.startswith(VISION_NAMES):
        return SpelledName(rest, prefix, vision=True, peft=peft, wrapped=wrapped)
    if rest.startswith(heads_beside()):
        return SpelledName(rest, prefix, mtp=True, peft=peft, wrapped=wrapped)
    if rest.startswith("lm_head."):
        return SpelledName(rest, prefix, peft=peft, wrapped=wrapped)
    if rest.startswith(_BARE):
        return SpelledName("model." + rest, prefix, peft=peft, wrapped=wrapped)
    return SpelledName(name, "", peft=peft, wrapped=wrapped)


def outer_wrapper(names: Iterable[str]) -> str:
    """What stands in front of all names and belongs to no model: ``actor.``, say.

    >>> outer_wrapper(["actor.model.norm.weight", "actor.lm_head.weight"])
    'actor.'
    >>> outer_wrapper(["model.norm.weight", "model.embed_tokens.weight"])
    ''
    """
    # How names of a model begin; whatever else all of them share in front is somebody's wrapper.
    first_parts = (*_LANGUAGE, "lm_head.", *heads_beside(), *_BARE, *VISION_NAMES)
    left, found = list(names), ""
    while left and not any(canonical_name(name).canonical.startswith(first_parts) for name in left):
        first, dot, _ = left[0].partition(".")
        if not dot or not all(name.startswith(first + dot) for name in left):
            return ""
        left, found = [name.removeprefix(first + dot) for name in left], found + first + dot
    return found if left else ""


def behind_front(name: str) -> tuple[str, SpelledName] | None:
    """What is in front of a canonical name and belongs to no model, and the name behind it; ``None`` without.

    >>> front, spelled = behind_front("actor.model.layers.3.mlp.gate.weight")
    >>> front, spelled.canonical
    ('actor.', 'model.layers.3.mlp.gate.weight')
    """
    if name.startswith((*_TRUNK, *heads_beside(), *VISION_NAMES)):
        return None
    parts = name.split(".")
    for at in range(1, len(parts) - 1):
        spelled = canonical_name(".".join(parts[at:]))
        if spelled.canonical.startswith((*_TRUNK, *heads_beside())):
            return ".".join(parts[:at]) + ".", spelled
    return None


def stray_fronts(names: Collection[str], *, tied: bool) -> dict[str, str]:
    """What is in front of some canonical names and belongs to no model, by name: only what is clearly so.

    Without it none of the names is there twice; else it is another module's, or a copy's.

    Args:
        tied: the model has no output head of its own, so that nothing is one for its name alone.

    >>> stray_fronts(["model.norm.weight", "actor.model.layers.0.mlp.gate.weight"], tied=False)
    {'actor.model.layers.0.mlp.gate.weight': 'actor.'}
    >>> stray_fronts(["model.norm.weight", "ema.model.norm.weight"], tied=False)
    {}
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if (found := behind_front(name)) is not None:
            groups.setdefault(found[0], {})[name] = found[1].canonical
    there = set(names)
    fronts: dict[str, str] = {}
    for front, group in groups.items():
        wanted = set(group.values())
        only_head = all(name.startswith("lm_head.") for name in wanted)
        if not wanted & there and len(wanted) == len(group) and not (tied and only_head):
            fronts |= dict.fromkeys(group, front)
            there |= wanted
    return fronts


def published_name(canonical: str, family: Family, *, wrapper: bool) -> str:
    """The name that the family's published checkpoints give a canonical tensor.

    Args:
        wrapper: the multimodal form; else the text-only one, whose names are the canonical ones.

    >>> published_name("model.norm.weight", FAMILIES["qwen3_5"], wrapper=True)
    'model.language_model.norm.weight'
    >>> published_name("visual.pos_embed.weight", FAMILIES["qwen3_5"], wrapper=True)
    'model.visual.pos_embed.weight'
    """
    if not wrapper:
        return canonical
    if canonical.startswith("model."):
        return family.wrapper_prefix + canonical.removeprefix("model.")
    if canonical.startswith("lm_head."):
        return family.wrapper_head + canonical
    if canonical.startswith(VISION_NAMES):
        return family.vision_prefix + canonical
    return canonical


def is_ignorable(name: str) -> bool:
    """Whether the tensor is a buffer that no reader needs."""
    return name.endswith(_IGNORABLE)


def is_expert_name(name: str) -> bool:
    """Whether the tensor holds expert weights, in any layout."""
    return _EXPERT.search(name) is not None
