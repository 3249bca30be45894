"""Rotary position settings: what a config means by them, and their two spellings.

transformers 5 keeps everything in ``rope_parameters``; readers written for transformers 4 look for
``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` beside the other hyper-parameters, and fall
back to 10000 without a word when they do not find them. :func:`complete_rope` gives both; when they disagree,
transformers 5's order decides, since that is what the model was trained or merged with:
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
(``convert_rope_params_to_dict``; Gemma 3 has its own, with one set of values per attention kind). But where
there ``rope_scaling`` replaces ``rope_parameters`` as a whole, Qwen3.5's sections too, it is laid over
them here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.families.family import Family

_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
# Readers take these from keys of their own. Qwen3.5's sections stay: rope_scaling replaces rope_parameters.
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")
_RELATIVE = ("llama3", "yarn", "longrope")  # to the length that the model was trained at


@dataclass(frozen=True)
class Rope:
    """How the layers of one kind turn queries and keys.

    Attributes:
        kind: ``default``, or how it is scaled: ``linear``, ``dynamic``, ``yarn``, ``llama3``, ``longrope``.
        partial: the part of each head that is turned.
        sections: pairs for time, height and width, where the model shares them out.
        values: all parameters, as transformers 5 spells them.
    """

    kind: str
    theta: float
    partial: float = 1.0
    factor: float | None = None
    original_context: int | None = None
    sections: tuple[int, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def rope_of(values: Mapping[str, Any]) -> Rope:
    """One complete set of parameters, typed."""
    return Rope(
        kind=str(values.get("rope_type") or "default").lower(),
        theta=float(values["rope_theta"]),
        partial=float(values.get("partial_rotary_factor") or 1.0),
        factor=None if values.get("factor") is None else float(values["factor"]),
        original_context=values.get("original_max_position_embeddings"),
        sections=tuple(values.get("mrope_section") or ()),
        values=values,
    )


def rope_parameters(family: Family, text: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` as transformers 5 understands this config; empty if it says nothing about RoPE."""
    given = text.get("rope_parameters")
    params: dict[str, Any] = copy.deepcopy(dict(given)) if isinstance(given, Mapping) else {}
    scaling = text.get("rope_scaling")
    scaling = _respelled(copy.deepcopy(dict(scaling))) if isinstance(scaling, Mapping) else {}
    turning = family.turning
    if turning.local:
        return _per_kind(params, scaling, text)
    params = _respelled(params) | scaling  # rope_scaling goes first in transformers 5 too
    for key in ("rope_theta", "partial_rotary_factor"):
        if text.get(key) is not None:
            params.setdefault(key, text[key])
    if params:
        _settle(params, text)
    # What readers take when these are absent: a part of the head rotates, its pairs shared out evenly over
    # time, height and width ([11, 11, 10] for Qwen3.5's heads of 256).
    if params and turning.partial is not None:
        params.setdefault("partial_rotary_factor", turning.partial)
    if params and turning.sections:
        head_dim = text.get("head_dim") or family.defaults["head_dim"]
        pairs = int(head_dim * params.get("partial_rotary_factor", 1)) // 2
        thirds = [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3]
        params.setdefault("mrope_section", list(turning.shares) or thirds)
        params.setdefault("mrope_interleaved", True)
    return params


def _respelled(values: dict[str, Any]) -> dict[str, Any]:
    """``type`` is ``rope_type``'s older name; null is absent."""
    values = {key: value for key, value in values.items() if value is not None}
    if (kind := values.pop("type", None)) is not None:
        values.setdefault("rope_type", kind)
    return values


def _settle(values: dict[str, Any], text: Mapping[str, Any]) -> None:
    values.setdefault("rope_type", "default")
    if values["rope_type"] in _RELATIVE and text.get("max_position_embeddings") is not None:
        values.setdefault("original_max_position_embeddings", text["max_position_embeddings"])


def _per_kind(params: dict[str, Any], scaling: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    if params and not any(isinstance(value, Mapping) for value in params.values()):
        params = {"full_attention": params}
    for kind, legacy in _KINDS.items():
        values = params.get(kind)
        if values is None and text.get(legacy) is None and not (kind == "full_attention" and scaling):
            continue
        values = params[kind] = _respelled(dict(values or {}))
        if kind == "full_attention":
            values |= scaling
        if text.get(legacy) is not None:
            values.setdefault("rope_theta", text[legacy])
        _settle(values, text)
    return params


def legacy_rope_keys(params: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that readers for transformers 4 need, from ``rope_parameters``."""
    keys: dict[str, Any] = {}
    main = params
    if isinstance(params.get("full_attention"), Mapping) or isinstance(
        params.get("sliding_attention"), Mapping
    ):
        main = params.get("full_attention") or {}
        local = params.get("sliding_attention") or {}
        if "rope_theta" in local:
            keys["rope_local_base_freq"] = local["rope_theta"]
    if "rope_theta" in main:
        keys["rope_theta"] = main["rope_theta"]
    if "partial_rotary_factor" in main:
        keys["partial_rotary_factor"] = main["partial_rotary_factor"]
    if main.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {key: value for key, value in main.items() if key not in _NOT_SCALING}
    return keys


def complete_rope(family: Family, text: Mapping[str, Any]) -> dict[str, Any]:
    """Every RoPE key that ``text`` tells, in both spellings; empty if it says nothing about RoPE."""
    params = rope_parameters(family, text)
    return {"rope_parameters": params, **legacy_rope_keys(params)} if params else {}


def rope_disagreements(family: Family, text: Mapping[str, Any]) -> list[str]:
    """Where the two spellings are both there and differ: ``key: value, but rope_parameters says value``."""
    given = text.get("rope_parameters")
    if not isinstance(given, Mapping):
        return []
    params = rope_parameters(family, text)
    wanted = legacy_rope_keys(params)
    found = [
        f"{key} is {text[key]!r}, but rope_parameters says {wanted[key]!r}"
        for key in ("rope_theta", "partial_rotary_factor", "rope_local_base_freq")
        if key in wanted and text.get(key) is not None and text[key] != wanted[key]
    ]
    scaling = text.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling:
        main = given.get("full_attention", given)
        said = _respelled(dict(main)) if isinstance(main, Mapping) else {}
        found += [
            f"rope_scaling.{key} is {value!r}, but rope_parameters says {said.get(key)!r}"
            for key, value in _respelled(dict(scaling)).items()
            if said.get(key) != value
        ]
        lost = [key for key in ("mrope_section", "mrope_interleaved") if key in params and key not in scaling]
        if lost:
            found.append(f"rope_scaling lacks {' and '.join(lost)}, and replaces rope_parameters as a whole")
    return found
