"""The MTP head as a file of its own, ``mtp-Name-Q8_0.gguf``, and the trunk without it.

llama.cpp's converter writes both (``--mtp``, ``--no-mtp``): the head's file has the MTP block, and what it
drafts with, the embedding, the final norm and the output matrix; every key of the whole model is in it. The
trunk's file is that of a model without a head. ``llama-server -hf repo:TAG --spec-type draft-mtp`` fetches,
beside the file with the tag, the one whose name has ``mtp-`` in it (``common/download.cpp``,
``find_best_mtp``); ``-md`` names it. One serves the files of all types.

A size is of both files. Types from another file go where their tensors go; what the head's file has once more
is of its own type. Types that are chosen, or named for tensors, are the trunk's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.assign.aim import wants_best
from qexport.errors import UsageProblem
from qexport.families.roles import Block, Role
from qexport.formats.gguf.file_name import HEAD_PREFIX, file_stem
from qexport.formats.gguf.options import DRAFTER, head_type
from qexport.formats.gguf.plan import given_types, plan_gguf
from qexport.sizes import counted

if TYPE_CHECKING:
    from qexport.assign.assignment import Assignment
    from qexport.families.view import ModelView
    from qexport.formats.gguf.options import GgufOptions
    from qexport.formats.plan import ArtifactPlan


_WITH_IT = frozenset((Role.TOKEN_EMBD, Role.OUTPUT_NORM, Role.OUTPUT))


def trunk_of(view: ModelView, options: GgufOptions) -> ModelView:
    """What the model's own files hold: all of it, or all but the head."""
    if options.mtp != DRAFTER or not view.mtp_layers:
        return view
    kept = tuple(tensor for tensor in view if tensor.block is not Block.MTP)
    return replace(view, tensors=kept, mtp_layers=0)


def options_of_trunk(view: ModelView, options: GgufOptions) -> GgufOptions:
    """The options as they are those of the model's own files: a size is what the head's file leaves."""
    if options.mtp != DRAFTER or not view.mtp_layers:
        return options
    own = replace(options, mtp_type=None)
    if options.size is not None and not options.settled:
        left = options.size - plan_head(view, options)[0].size
        return replace(own, size=max(left, 1))
    given = _given(view, options)
    return own if given is None else replace(own, types_from=_part(given, _block(view), inside=False))


def with_head(
    plans: tuple[ArtifactPlan, ...], view: ModelView, options: GgufOptions
) -> tuple[ArtifactPlan, ...]:
    """The trunk's plans, which say where the head is."""
    if options.mtp != DRAFTER or not view.mtp_layers:
        return plans
    name, kind = _file_name(view, options), head_type(options)
    count = sum(tensor.block is Block.MTP for tensor in view)
    note = f"the MTP head ({counted(count, 'tensor')}) goes into {name}, beside the file"
    told = {"mtp_layouts": [DRAFTER], "mtp_type": kind, "mtp_file": name}
    return tuple(replace(each, notes=(*each.notes, note), details={**each.details, **told}) for each in plans)


def plan_head(view: ModelView, options: GgufOptions, *, dropped: bool = False) -> tuple[ArtifactPlan, ...]:
    """The head's file, where it is to have one.

    Args:
        dropped: whether there was one, which was not to be kept.

    Raises:
        UsageProblem: a file is asked for, and there is no head.
    """
    kind = head_type(options)
    if not kind:
        return ()
    if not view.mtp_layers:
        if dropped:
            raise UsageProblem(
                f"--mtp-layout {DRAFTER}, but the MTP head of {view.label} is to be dropped",
                hint="Leave out --mtp drop, or --mtp-layout.",
            )
        raise UsageProblem(
            f"--mtp-layout {DRAFTER}, but {view.label} has no MTP head",
            hint="--mtp-from BASE takes that of the model that was fine-tuned.",
        )
    tensors = tuple(each for each in view if each.block is Block.MTP or each.role in _WITH_IT)
    alone = replace(view, tensors=tensors, vision=None)
    own = _of_head(options)
    (plan,) = plan_gguf(alone, [kind], own)
    notes: list[str] = []
    given = _given(view, options) if options.mtp_type is None else None
    if given is not None and plan.assignment is not None:
        block = _block(view)
        followed = _part(given, block, inside=True)
        notes = followed.missing(sorted(block))
        followed = replace(followed, types={**plan.assignment.types, **followed.types})
        (plan,) = plan_gguf(alone, [kind], replace(own, types_from=followed))
    (file,) = plan.files
    return (
        replace(
            plan,
            kind="mtp",
            label=f"{HEAD_PREFIX}{kind}",
            files=(replace(file, name=_file_name(view, options)),),
            notes=(*plan.notes, *notes),
            assignment=None,
        ),
    )


def _given(view: ModelView, options: GgufOptions) -> Assignment | None:
    """The types of ``--types-from``; those that were chosen for an aim are the trunk's."""
    return given_types(view, options.types, options) if options.aim is None else None


def _part(given: Assignment, block: set[str], *, inside: bool) -> Assignment:
    types = {name: word for name, word in given.types.items() if (name in block) == inside}
    return replace(given, types=types)


def _block(view: ModelView) -> set[str]:
    return {tensor.name for tensor in view if tensor.block is Block.MTP}


def _of_head(options: GgufOptions) -> GgufOptions:
    """But for error feedback that was asked for, what holds for every file of the folder. The best of a type
    are compared with plain ones, beside the same head."""
    return replace(
        options.without_aim(),
        tensor_types=(),
        output_type=None,
        embedding_type=None,
        mtp_type="mixture",
        feedback=options.feedback and not wants_best(options),
        split_max_size=0,
        folders="none",
        mmproj=(),
        no_mmproj=True,
    )


def _file_name(view: ModelView, options: GgufOptions) -> str:
    stem, _ = file_stem(view, head_type(options), options)
    return f"{HEAD_PREFIX}{stem}.gguf"
