"""A file whose types are chosen for a size: between which types, for which tensors, and what it is called.

All tensors that llama-quantize would quantize take part, the output matrix and the embedding among them, but
for those that the user names a type for. The MTP block has a floor, as it has in every file (``mixture.py``).
No tensors need one type together.

What only ggml encodes is some hundred times slower than the rest. So those types are offered only where the
size asked for is below that of Q3_K_S, the least that is good without them. For a divergence the size is
known only when the types are chosen: it is said then that these were not tried.

A file is called after the type of llama-quantize's whose size is nearest, with ``QX-`` before it:
``Name-QX-Q4_K_M.gguf`` is what ``-hf repo:Q4_K_M`` loads where there is no plain one, and the Hub shows it as
Q4_K_M (``file_name.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.assign.aim import SIZED
from qexport.assign.assignment import Assignment
from qexport.codecs.ggml_types import ggml_type
from qexport.errors import UsageProblem
from qexport.evidence.store import Kind
from qexport.families.roles import Block
from qexport.formats.format import Candidates
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.file_types import file_type
from qexport.formats.gguf.importance import evidence_of
from qexport.formats.gguf.mixture import MTP_FLOOR, requires_importance
from qexport.formats.gguf.mixture_terms import Reason
from qexport.formats.gguf.plan import choices_of, outputs_of, plan_gguf
from qexport.formats.gguf.split import data_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from qexport.families.view import ModelView
    from qexport.formats.gguf.options import GgufOptions
    from qexport.formats.plan import ArtifactPlan


WORDS = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
SLOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
_LADDER = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"),
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
)
_MIDDLE, _FAST = "Q4_K_M", "Q3_K_S"


def candidates(view: ModelView, options: GgufOptions) -> Candidates:
    """What may be chosen."""
    arch = arch_of(view)
    outputs = outputs_of(arch, view)
    chosen = choices_of(view, arch, file_type(_MIDDLE), outputs, options, None, [])
    own = {Reason.KEPT, Reason.OVERRIDE, *((Reason.MTP,) if options.mtp_type else ())}
    free = [
        output
        for output in outputs
        if output.canonical
        and (choice := chosen[output.name]).reason not in own
        and ggml_type(choice.type).is_quantized
    ]
    head = (
        {tensor.name for tensor in view if tensor.block is Block.MTP} if options.mtp_type is None else set()
    )
    wanted = _wanted(view, options)
    enough = _weight(view, options)(_FAST)
    words = (*SLOW, *WORDS) if wanted is not None and wanted < enough else WORDS
    floor = ggml_type(MTP_FLOOR).bits_per_weight
    small = frozenset(word for word in words if ggml_type(word).bits_per_weight < floor)
    evidence = evidence_of(view, options.imatrix)
    barred: dict[str, frozenset[str]] = {}
    for output in free:
        if output.canonical in head:
            barred[output.canonical] = small
        elif evidence.of(Kind.INPUT_SQUARES, output.canonical) is None:
            needy = frozenset(word for word in words if requires_importance(output.name, word, _MIDDLE))
            barred |= {output.canonical: needy} if needy else {}
    return Candidates(
        words=words,
        groups=tuple((output.canonical,) for output in free),
        barred=barred,
        floors=(f"the MTP head has {MTP_FLOOR} at least",) if head else (),
        enough=enough,
        others="" if words != WORDS else f"{SLOW[0]} to {SLOW[-1]}",
    )


def plain(options: GgufOptions, like: str) -> GgufOptions:
    """What the type alone would be written with.

    Raises:
        UsageProblem: there is no such type, or it is a float's.
    """
    file = file_type(like)
    if not file.is_quantized:
        raise UsageProblem(f"--like {file.name} is no quantized type", hint="Try --like Q4_K_M.")
    return replace(options.without_aim(), types=(file.name,))


def best(options: GgufOptions) -> tuple[GgufOptions, ...]:
    """A file for each type: the best of its size, or the type itself where nothing smaller can be chosen."""
    files = [file_type(name) for name in options.types]
    return tuple(
        replace(options, types=(), like=file.name)
        if file.is_quantized and file.name != WORDS[-1]
        else replace(options.without_aim(), types=(file.name,))
        for file in files
    )


def name_for(view: ModelView, options: GgufOptions, nbytes: int) -> str:
    """What a file with so many bytes of tensors is called: the type asked for, or the nearest by size."""
    if options.like is not None:
        return f"{SIZED}{file_type(options.like).name}"
    weight = _weight(view, options)
    return f"{SIZED}{min(_LADDER, key=lambda name: abs(weight(name) - nbytes))}"


def _weight(view: ModelView, options: GgufOptions) -> Callable[[str], int]:
    """Bytes of all tensors by file type."""
    arch = arch_of(view)
    outputs = outputs_of(arch, view)
    bare = options.without_aim()

    def weight(name: str) -> int:
        chosen = choices_of(view, arch, file_type(name), outputs, bare, None, [])
        return sum(data_bytes(output, chosen) for output in outputs)

    return weight


def _wanted(view: ModelView, options: GgufOptions) -> int | None:
    """Bytes of all tensors that were asked for; nothing where a quality was."""
    if options.max_kld is not None:
        return None
    if options.like is not None:
        return _weight(view, options)(options.like)
    (middle,) = plan_gguf(view, [_MIDDLE], options)
    if options.size is not None:
        return options.size - (middle.size - middle.data_size)
    assert options.bpw is not None
    return int(middle.data_size * options.bpw / middle.bits_per_weight)


def plan_sized(view: ModelView, options: GgufOptions) -> tuple[ArtifactPlan, ...]:
    """The plan of options with an aim; until the types are chosen, that of the nearest type's stands in."""
    if isinstance(options.types_from, Assignment):
        return plan_gguf(view, [options.types_from.label.removeprefix(SIZED)], options)
    if options.like is not None:
        return plan_gguf(view, plain(options, options.like).types, options)
    wanted = _wanted(view, options)
    name = _MIDDLE if wanted is None else name_for(view, options, wanted).removeprefix(SIZED)
    return plan_gguf(view, [name], options)
