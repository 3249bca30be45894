"""Tensors of a file before and after their types are known; those of NVFP4 with their scales beside them.

NVFP4 has a float32 scale for a whole matrix, for each expert one. GGUF keeps it in a tensor of its own,
``blk.0.ffn_up.scale`` beside ``blk.0.ffn_up.weight``, and llama.cpp's graphs multiply by it what the matrix
gives, where they know of it (``Arch.scaled``): others load the tensor and compute without. What runtimes
fuse has one scale, as in folders, so that the numbers are the same.

``general.tensor_extra.prec_a4`` says that inputs stay as they are, as llama.cpp's converter writes it for
W4A16 folders (https://github.com/ggml-org/llama.cpp/blob/master/conversion/base.py, ``_tag_prec_a4``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.container.gguf_write import KV, ValueType, array
from qexport.errors import InputError
from qexport.families.roles import Role
from qexport.formats.gguf.mixture_terms import Choice, Reason
from qexport.formats.linears import LINEAR_ROLES, sharing
from qexport.formats.plan import Arrangement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.families.family import Arch
    from qexport.families.view import ModelView


NVFP4 = "NVFP4"


@dataclass(frozen=True)
class Untyped:
    """A GGUF tensor before its type is known; ``canonical`` is its name in the view, if it is from there."""

    name: str
    canonical: str
    shape: tuple[int, ...]
    role: Role | None
    source: LogicalTensor
    arrangement: Arrangement


def scale_name(name: str) -> str:
    """Of the tensor that holds the scales of another."""
    return name.removesuffix(".weight") + ".scale"


def takes_scales(arch: Arch, role: Role | None) -> bool:
    """Whether llama.cpp multiplies what such a matrix gives by its scale."""
    return arch.scaled and role in LINEAR_ROLES | {Role.OUTPUT}


def scaled(
    view: ModelView, arch: Arch, outputs: Sequence[Untyped], choices: Mapping[str, Choice]
) -> dict[str, tuple[str, ...]]:
    """The tensors of NVFP4 by their names in the file, each with the canonical names of those that share its
    scale.

    Raises:
        InputError: llama.cpp would compute one of them without its scale.
    """
    found = [output for output in outputs if choices[output.name].type == NVFP4]
    for output in found:
        if not takes_scales(arch, output.role):
            raise InputError(
                f"{output.name} cannot be NVFP4: llama.cpp computes it without its scale"
                + ("" if arch.scaled else f" in {arch.name} models"),
                hint="Choose another type, such as Q4_K_M." if not arch.scaled else "Give it Q8_0.",
            )
    groups = sharing(view, {output.canonical for output in found})
    return {output.name: groups[output.canonical] for output in found}


def with_scales(
    outputs: Sequence[Untyped], shared: Mapping[str, object], choices: dict[str, Choice]
) -> list[Untyped]:
    """All tensors of the file, in its order; the scales' types are added to ``choices``."""
    made: list[Untyped] = []
    for output in outputs:
        if output.name in shared:
            count = output.shape[0] if len(output.shape) == 3 else 1
            name = scale_name(output.name)
            choices[name] = Choice("F32", Reason.KEPT)
            made.append(Untyped(name, "", (count,), None, output.source, Arrangement()))
        made.append(output)
    return made


def inputs_as_they_are(shared: Mapping[str, object]) -> dict[str, KV]:
    """What the file says of the inputs of such tensors."""
    if not shared:
        return {}
    names = sorted(shared)
    return {
        "general.tensor_extra.name": array(ValueType.STRING, names),
        "general.tensor_extra.prec_a4": array(ValueType.BOOL, [False] * len(names)),
    }
