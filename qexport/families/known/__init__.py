"""The families that qexport knows: one file for each, or for close kin, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.checkpoint.config import text_config
from qexport.errors import InputError
from qexport.families.family import Family
from qexport.families.known import gemma3, glm4_moe, llama, qwen3, qwen3_5, qwen3_vl

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        qwen3_5.QWEN3_5,
        qwen3_5.QWEN3_5_MOE,
        llama.LLAMA,
        llama.MISTRAL,
        qwen3.QWEN2,
        qwen3.QWEN3,
        qwen3.QWEN3_MOE,
        qwen3_vl.QWEN3_VL,
        qwen3_vl.QWEN3_VL_MOE,
        gemma3.GEMMA3,
        glm4_moe.GLM4_MOE,
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config's ``model_type`` or architecture names.

    Raises:
        InputError: the model type is missing, or no family here knows it.
    """
    words = [config.get("model_type"), text_config(config).get("model_type")]
    for family in FAMILIES.values():
        if any(word in family.model_types for word in words if word):
            return family
    architectures = config.get("architectures")
    architectures = architectures if isinstance(architectures, list) else []
    for family in FAMILIES.values():
        if family.causal_arch in architectures or family.wrapper_arch in architectures:
            return family
    known = ", ".join(FAMILIES)
    raise InputError(
        f"the model type {words[0]!r} (architectures {architectures!r}) is not one that qexport knows",
        hint=f"Families that it can export: {known}.",
    )
