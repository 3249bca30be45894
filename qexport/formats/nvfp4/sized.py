"""A folder whose types are chosen for an aim: NVFP4, FP8 or as it is, for what runtimes run as one.

Chosen for are the linear layers of the language model and, in ModelOpt's layout, ``lm_head``. What readers
fuse has one type, and so have all experts of a layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.assign.assignment import Assignment
from qexport.errors import UsageProblem, closest
from qexport.formats.format import Candidates
from qexport.formats.linears import kernel_of
from qexport.formats.nvfp4.options import SCOPES
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.nvfp4.scope import WORDS, choosable, why_not
from qexport.formats.sized_folder import called

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor
    from qexport.formats.nvfp4.options import Nvfp4Options
    from qexport.formats.plan import ArtifactPlan


def candidates(repaired: Repaired, options: Nvfp4Options) -> Candidates:
    """What may be chosen."""
    groups: dict[object, list[ModelTensor]] = {}
    for tensor in choosable(repaired.view(), options):
        groups.setdefault(kernel_of(tensor), []).append(tensor)
    barred = {
        members[0].name: frozenset(
            word for word in WORDS if any(why_not(repaired, tensor, word, options) for tensor in members)
        )
        for members in groups.values()
    }
    return Candidates(
        words=WORDS,
        groups=tuple(tuple(tensor.name for tensor in members) for members in groups.values()),
        barred={name: words for name, words in barred.items() if words},
    )


def plain(options: Nvfp4Options, like: str) -> Nvfp4Options:
    """What the scope alone would be written with. Raises UsageProblem: there is no such scope."""
    if like not in SCOPES:
        raise UsageProblem(
            f"--like {like} is no scope{closest(like, SCOPES)}", hint=f"There are {', '.join(SCOPES)}."
        )
    return options.without_aim(scope=like, scale_search=options.search)


def best(options: Nvfp4Options) -> tuple[Nvfp4Options, ...]:
    """The best folder of the size of the scope that is named. Raises UsageProblem: it has no name."""
    plain(options, options.scope)
    return (replace(options, like=options.scope, scope="mlp", scale_search="max", keep_head=False),)


def plan_sized(repaired: Repaired, options: Nvfp4Options) -> tuple[ArtifactPlan, ...]:
    """The plan of options with an aim; until the types are chosen, that of a scope stands in."""
    made = plain(options, options.like or "mlp")
    if isinstance(options.types_from, Assignment):
        made = replace(made, types_from=options.types_from)
    assert options.aim is not None
    return called([plan_nvfp4(repaired, made, sized=True)], options, f"NVFP4-{options.aim.label}")
