"""What a model sees with: its ``vision_config`` resolved once, as transformers' class does it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.families.family import Family, Sight
from qexport.families.values import typed

if TYPE_CHECKING:
    import numpy as np

_COPY = "Copy vision_config from the config.json of the checkpoint that was fine-tuned."
_PREPROCESSORS = {"preprocessor_config.json": "media_proc_cfg", "processor_config.json": "image_processor"}
_MOST_BLOCKS = 10_000  # every block's tensors are listed before a header is believed


@dataclass(frozen=True)
class VisionHyper:
    """A vision tower's hyper-parameters, with nothing left to guess.

    Attributes:
        hidden: width of the language model, which the tower's output has.
        config: all of them as transformers spells them, with every key that the config has.
    """

    vision: Sight = field(repr=False)
    hidden: int
    config: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """Its blocks."""
        count: int = self.config[self.vision.tower.count]
        return count

    @property
    def deepstack(self) -> tuple[int, ...]:
        """The blocks whose output goes into the language model's first layers, in their order."""
        stack = self.vision.deepstack
        return () if stack is None else tuple(self.config[stack.count])

    @cached_property
    def dims(self) -> dict[str, int]:
        """Numbers for the words in the shapes of its templates."""
        dims = {word: self.config[key] for word, key in self.vision.sizes.items()}
        dims["v_qkv"] = 3 * dims["v_hidden"]
        dims["v_merged"] = dims["v_hidden"] * dims.get("v_merge", 1) ** 2
        if "v_image" in dims:
            dims["v_positions"] = (dims["v_image"] // dims["v_patch"]) ** 2
        return dims


def resolve_vision(family: Family, config: Mapping[str, Any], hidden: int) -> VisionHyper | None:
    """The tower that ``config.json`` describes; ``None`` where it does not, or the family has none.

    Raises:
        InputError: a size is not one, or the tower's output is not as wide as the language model.
    """
    given, vision = config.get("vision_config"), family.vision
    if vision is None or not isinstance(given, Mapping):
        return None
    sizes = {*vision.sizes.values(), *vision.aliases}
    square = {
        key: _one(value) if key in sizes else value for key, value in given.items() if value is not None
    }
    door = typed(square, where="vision_config.", defaults=vision.defaults)
    stated = door.values
    for alias, key in vision.aliases.items():
        if alias in stated:
            stated.setdefault(key, stated[alias])
    whole = {**vision.defaults, **stated}
    wrong = list(door.unusable)
    wrong += [
        f"vision_config.{key} is {whole[key]!r}, but must be a positive integer"
        for key in (*vision.sizes.values(), vision.tower.count)
        if key in whole and (type(whole[key]) is not int or whole[key] < 1)
    ]
    if not wrong and whole[vision.tower.count] > _MOST_BLOCKS:
        count = whole[vision.tower.count]
        wrong.append(f"vision_config.{vision.tower.count} is {count}, which no model has")
    if not wrong and vision.deepstack is not None:
        wrong += deepstack_problems(whole[vision.deepstack.count], whole[vision.tower.count])
    found = VisionHyper(vision, hidden, whole)
    if not wrong and found.dims.get("v_out", hidden) != hidden:
        out = vision.sizes["v_out"]
        wrong.append(f"vision_config.{out} is {whole[out]}, but the language model's hidden_size is {hidden}")
    if not wrong and (odd := found.dims["v_hidden"] % found.dims["v_heads"]):
        wrong.append(f"vision_config.{vision.sizes['v_hidden']} leaves {odd} when shared out over its heads")
    if wrong:
        raise InputError("config.json: " + "; ".join(wrong), hint=_COPY)
    return found


def deepstack_problems(given: Any, layers: int) -> list[str]:
    """What is wrong with the numbers of the blocks whose output goes into the language model."""
    key = "vision_config.deepstack_visual_indexes"
    if not isinstance(given, list | tuple) or any(type(number) is not int for number in given):
        return [f"{key} is {given!r}, but must be a list of numbers of blocks"]
    if out := [str(number) for number in given if not 0 <= number < layers]:
        return [f"{key} has {', '.join(out)}, but the tower's blocks are 0 to {layers - 1}"]
    if len(set(given)) < len(given):
        return [f"{key} is {list(given)}, which names a block twice"]
    return []


def image_tokens(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that an image becomes, by the config's keys."""
    if family.vision is None:
        return {}
    aliases = {key: alias for alias, key in family.vision.aliases.items()}
    found = {
        key: config.get(key, config.get(aliases.get(key, key), default))
        for key, default in family.vision.tokens.items()
    }
    return {key: number for key, number in found.items() if type(number) is int}


def preprocessor(files: Mapping[str, bytes]) -> dict[str, Any]:
    """preprocessor_config.json, and processor_config.json over it, with what they nest at the root."""
    found: dict[str, Any] = {}
    for name, inner in _PREPROCESSORS.items():
        try:
            read = json.loads(files[name]) if name in files else {}
        except ValueError:
            continue
        if isinstance(read, dict):
            nested = read.get(inner)
            found |= {**read, **nested} if isinstance(nested, dict) else read
    return found


def _one(value: Any) -> Any:
    """``[16, 16]``, height and width of what is square, as a number."""
    return value[0] if isinstance(value, list) and value and len(set(map(str, value))) == 1 else value


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How MLX has the kernel of a convolution: what goes in, second elsewhere, is last.

    >>> channels_last((64, 3, 2, 16, 16))
    (64, 2, 16, 16, 3)
    """
    return (shape[0], *shape[2:], shape[1])


def channels_last_order(shape: tuple[int, ...]) -> np.ndarray:
    """For each value of one output of that kernel, its place in the kernel of ``shape``."""
    import numpy as np

    return np.moveaxis(np.arange(math.prod(shape[1:])).reshape(shape[1:]), 0, -1).reshape(-1)
