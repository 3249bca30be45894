"""One spelling for the many that checkpoints use.

The same tensor is ``model.layers.0...`` in a text-only save, ``model.language_model.layers.0...`` in a
published Qwen3.5, ``language_model.model.layers.0...`` in older multimodal and MLX layouts, and the MTP head
is ``mtp.*``, ``model.mtp.*`` or deeper. Merging tools add ``base_model.model.`` and ``.base_layer``. This
module maps all of them to the text-only spelling and says which wrapping it found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qexport.families.table import Family

__all__ = ["SpelledName", "canonical_name", "is_expert_name", "is_ignorable", "published_name"]

_VISION = re.compile(
    r"^(?:model\.)?(?:language_model\.)*(visual\.|vision_tower\.|vision_model\.|multi_modal_projector\.)"
)
# What PEFT leaves when a model is saved without unwrapping it.
_PEFT_PREFIX = "base_model.model."
_BARE = ("layers.", "embed_tokens.", "norm.")
# Buffers that old conversions stored; every reader recomputes them.
_IGNORABLE = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
_EXPERT = re.compile(r"\.mlp\.experts\.")


@dataclass(frozen=True)
class SpelledName:
    """A canonical name and how it was spelled.

    ``prefix`` is what stood in front of the language model (``model.``, ``model.language_model.``,
    ``language_model.model.`` ...), ``mtp`` likewise for the head, ``""`` for names that need none.
    """

    canonical: str
    prefix: str
    vision: bool = False
    mtp: bool = False
    peft: bool = False


def canonical_name(stored: str) -> SpelledName:
    """The text-only spelling of a stored tensor name.

    >>> canonical_name("model.language_model.layers.3.mlp.gate.weight").canonical
    'model.layers.3.mlp.gate.weight'
    >>> canonical_name("model.mtp.fc.weight").canonical
    'mtp.fc.weight'
    >>> canonical_name("language_model.lm_head.weight").canonical
    'lm_head.weight'
    """
    name, peft = stored, False
    if name.startswith(_PEFT_PREFIX):
        name, peft = name.removeprefix(_PEFT_PREFIX), True
    if ".base_layer." in name:
        name, peft = name.replace(".base_layer.", "."), True
    if found := _VISION.match(name):
        rest = name[found.start(1) :]
        return SpelledName(rest, name[: found.start(1)], vision=True, peft=peft)
    rest = name
    while rest.startswith(("model.", "language_model.")):
        rest = rest.split(".", 1)[1]
    prefix = name[: len(name) - len(rest)]
    if rest.startswith("mtp."):
        return SpelledName(rest, prefix, mtp=True, peft=peft)
    if rest.startswith("lm_head."):
        return SpelledName(rest, prefix, peft=peft)
    if rest.startswith(_BARE):
        return SpelledName("model." + rest, prefix, peft=peft)
    return SpelledName(name, "", peft=peft)


def published_name(canonical: str, family: Family, *, wrapper: bool) -> str:
    """The name that the family's published checkpoints give a canonical tensor.

    Args:
        wrapper: the multimodal form; else the text-only one, whose names are the canonical ones.

    >>> from qexport.families.table import FAMILIES
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
    if _VISION.match(canonical):
        return family.vision_prefix + canonical
    return canonical


def is_ignorable(name: str) -> bool:
    """Whether the tensor is a buffer that no reader needs."""
    return name.endswith(_IGNORABLE)


def is_expert_name(name: str) -> bool:
    """Whether the tensor holds expert weights, in any layout."""
    return _EXPERT.search(name) is not None
