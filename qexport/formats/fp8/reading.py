"""Reading back native FP8: E4M3 with a scale per 128 x 128 tile, everything but a list of modules.

transformers 5.17 takes the block's size from the shapes of matrix and scales, which is wrong where a
dimension is no multiple of 128 (fact by running it; see docs/verification.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.artifacts.forms import Form
from qexport.families.roles import EXPERT_ROLES
from qexport.formats.hf import ASKED, hf_layout, stack_of

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import Asked, Promise, Rule, Traits


def _promises(artifact: Opened) -> Rule:
    quantization = artifact.details["quantization"]
    listed = quantization.get("ignored_layers") or quantization.get("modules_to_not_convert") or []

    def promise(asked: Asked) -> Promise:
        if asked.role not in ASKED:
            return None
        if asked.role in EXPERT_ROLES:
            stack = stack_of(asked.module)
            skipped = any("experts" in name and stack in name for name in listed)
        else:
            skipped = asked.module in listed
        return None if skipped else Form("fp8", 8, per="tile")

    return promise


def _unfit(folder: Traits) -> str | None:
    if folder.apart:
        return "transformers reads the experts of this family together alone, and in FP8 they are one by one"
    if folder.odd is None:
        return None
    return f"transformers dequantizes FP8 of other sizes than multiples of 128 wrongly ({folder.odd})"


def _stored_type(artifact: Opened) -> str:
    """Without ``weight_block_size`` each tensor has one scale."""
    return "FP8_BLOCK" if artifact.details["quantization"].get("weight_block_size") else "FP8"


NATIVE_FP8 = hf_layout("fp8", methods=("fp8",), stored_type=_stored_type, promises=_promises, unfit=_unfit)
