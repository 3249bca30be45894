"""``config.json`` of an FP8 folder: the repaired one, and what loaders have to know about its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.codecs.contract import FP8_TILE
from qexport.formats.compressed_config import compressed_tensors
from qexport.formats.fp8.listing import ignored_patterns, listed_modules
from qexport.formats.linears import declaring

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelView
    from qexport.formats.fp8.options import Fp8Options
    from qexport.formats.fp8.scope import Scope


def fp8_config(repaired: Repaired, view: ModelView, scope: Scope, options: Fp8Options) -> dict[str, Any]:
    """The whole of ``config.json``."""
    if options.native:
        return declaring(repaired, view, _native(listed_modules(repaired, view, scope)))
    return declaring(
        repaired, view, compressed_tensors({options.label: ()}, ignored_patterns(repaired, view, scope))
    )


def _native(listed: list[str]) -> dict[str, Any]:
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [FP8_TILE, FP8_TILE],
        "modules_to_not_convert": listed,
    }
