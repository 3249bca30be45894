"""The plan of a GGUF file: names, shapes, types, offsets, metadata and exact sizes, from headers alone.

Tensors stand in llama-quantize's order (what is outside blocks, then block by block, by name): readers go by
name, but a single order for every type lets one pass write them all, and this one makes a quantized file
equal to llama-quantize's from its first byte to its last.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qexport.assign.aim import SIZED
from qexport.assign.assignment import Assignment, read_types
from qexport.checkpoint.memory import MemoryCheckpoint
from qexport.checkpoint.tensors import matrix_shape
from qexport.codecs.contract import Blocks, Nvfp4Blocks, ggml_stored
from qexport.codecs.ggml_types import ggml_type
from qexport.container.gguf_file import read_gguf, shard_names
from qexport.container.gguf_write import KV, header_bytes, shard_metadata, string, u32
from qexport.errors import InputError, UsageProblem, some
from qexport.evidence.kinds import read_head
from qexport.evidence.store import Evidence, Kind, Need
from qexport.families.roles import Block, Role
from qexport.formats.feedback import feedback_needs, feedback_notes
from qexport.formats.gguf.arch import arch_of, arrangement_of, gguf_name
from qexport.formats.gguf.file_name import file_stem
from qexport.formats.gguf.file_types import file_type
from qexport.formats.gguf.general import GeneralOptions, ParameterCounts
from qexport.formats.gguf.importance import cold_experts, evidence_of
from qexport.formats.gguf.limits import LLAMA_CPP
from qexport.formats.gguf.metadata import MetadataOptions, build_metadata
from qexport.formats.gguf.mixture import choose_types, follow, protect_mtp, requires_importance, walk_order
from qexport.formats.gguf.mixture_terms import (
    Choice,
    MixtureModel,
    Overrides,
    Reason,
    TensorShape,
    compile_pattern,
)
from qexport.formats.gguf.mmproj import sight_notes
from qexport.formats.gguf.rope import llama3_rope_factors
from qexport.formats.gguf.scaled import Untyped, inputs_as_they_are, scale_name, scaled, with_scales
from qexport.formats.gguf.split import data_bytes, infos_of, parts_of
from qexport.formats.gguf.tokenizer import token_embedding_rows
from qexport.formats.limits import check_limits
from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedFile, PlannedTensor, Region
from qexport.sizes import counted

if TYPE_CHECKING:
    from qexport.families.family import Arch
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.gguf.file_types import FileType
    from qexport.formats.gguf.options import GgufOptions


_QUANTIZE_KEYS = ("general.quantization_version", "general.file_type")
_KV_STRING = 127  # llama-quantize passes these strings through a 128-byte buffer


def plan_gguf(view: ModelView, types: Sequence[str], options: GgufOptions) -> tuple[ArtifactPlan, ...]:
    """One plan per type; reads no tensor data.

    Args:
        view: the model, headers known.
        types: file types such as ``Q4_K_M``; a type named twice is planned once.
        options: what holds for all of them.

    Raises:
        UsageProblem: a type or pattern that does not exist.
        InputError: the model cannot be a GGUF file, its tokenizer is not known, or the importance matrix
            belongs to another model.
    """
    arch = arch_of(view)
    limits = [*check_limits(view, LLAMA_CPP), *sight_notes(view, options)]
    files = list(dict.fromkeys(file_type(name).name for name in types))
    outputs = outputs_of(arch, view)
    evidence = evidence_of(view, options.imatrix)
    given = given_types(view, files, options)
    return tuple(
        _plan_one(view, arch, file_type(name), outputs, options, given, evidence, limits) for name in files
    )


def outputs_of(arch: Arch, view: ModelView) -> list[Untyped]:
    """The tensors of the file, in its order."""
    outputs: list[Untyped] = []
    factors = llama3_rope_factors(view.hyper)
    if factors is not None:
        made = MemoryCheckpoint("rope factors", {"rope_freqs.weight": factors}).logical("rope_freqs.weight")
        outputs.append(Untyped(made.name, "", made.shape, None, made, Arrangement()))
    for tensor in view:
        if tensor.block is Block.VISION:
            continue
        arrangement = arrangement_of(arch, view, tensor)
        if tensor.role is Role.TOKEN_EMBD:
            arrangement = _without_unused_rows(view, tensor, arrangement)
        shape = arrangement.shape or tensor.shape
        name = gguf_name(arch, view, tensor)
        outputs.append(Untyped(name, tensor.name, shape, tensor.role, tensor.data, arrangement))
    return sorted(outputs, key=lambda output: walk_order(output.name))


def _without_unused_rows(view: ModelView, tensor: ModelTensor, arrangement: Arrangement) -> Arrangement:
    """Gemma 3 pads its embedding beyond the last token; llama.cpp wants as many rows as tokens."""
    rows = min(tensor.shape[0], token_embedding_rows(view) or tensor.shape[0])
    return arrangement if rows == tensor.shape[0] else Arrangement(shape=(rows, *tensor.shape[1:]))


def _plan_one(
    view: ModelView,
    arch: Arch,
    file: FileType,
    outputs: Sequence[Untyped],
    options: GgufOptions,
    given: Assignment | None,
    evidence: Evidence,
    limits: Sequence[str],
) -> ArtifactPlan:
    notes = [*limits]
    choices = choices_of(view, arch, file, outputs, options, given, notes)
    shared = scaled(view, arch, outputs, choices)
    weighted = _weighted(file, outputs, choices, options, evidence, notes)
    counts = ParameterCounts.of({output.name: output.shape for output in outputs})
    metadata, said = build_metadata(
        view, file_type=file.id, counts=counts, options=_metadata_options(options)
    )
    if file.is_quantized:  # llama-quantize sets these anew, which moves them to the end
        metadata |= {key: metadata.pop(key) for key in _QUANTIZE_KEYS}
    if weighted:
        metadata |= _imatrix_metadata(options)
    metadata |= inputs_as_they_are(shared)
    notes += said
    tensors: list[PlannedTensor] = []
    shards = parts_of(file, with_scales(outputs, shared, choices), choices, metadata, options.split_max_size)
    label = file.name if options.aim is None else f"{SIZED}{file.name}"
    stem, named = file_stem(view, label, options)
    notes += named
    if options.folders == "all" or (options.folders == "split" and len(shards) > 1):
        stem = f"{label}/{stem}"
    planned_files: list[PlannedFile] = []
    regions: dict[str, Region] = {}
    scales = {scale_name(name) for name in shared}
    for index, (names, members) in enumerate(zip(shard_names(stem, len(shards)), shards, strict=True)):
        infos, size = infos_of(file, members, choices)
        header = header_bytes(shard_metadata(metadata, index, len(shards), sum(map(len, shards))), infos)
        planned_files.append(PlannedFile(names, len(header) + size, header))
        for output, info in zip(members, infos, strict=True):
            region = Region(index, len(header) + info.offset, data_bytes(output, choices))
            if output.name in scales:
                regions[output.name] = region
                continue
            stored = ggml_stored(choices[output.name].type)
            needs = evidence.needed(Kind.INPUT_SQUARES, output.canonical) if output.name in weighted else ()
            streams: tuple[tuple[Region, ...], ...] = ((region,),)
            if output.name in shared:
                stored = Nvfp4Blocks(scales="mse" if needs else "max")
                needs = (Need(Kind.LARGEST, shared[output.name]), *needs)
                streams = ((region,), (regions[scale_name(output.name)],))
            if options.feedback:
                columns = matrix_shape(output.shape)[1]
                needs += feedback_needs(output.canonical, output.role, stored, columns, evidence)
            tensors.append(
                PlannedTensor(
                    output.name,
                    info.shape,
                    output.source,
                    output.arrangement,
                    stored,
                    streams,
                    needs,
                )
            )
    if options.feedback:
        notes += feedback_notes(tensors)
    return ArtifactPlan(
        kind="gguf",
        label=label,
        files=tuple(planned_files),
        tensors=tuple(tensors),
        notes=tuple(notes),
        details=_details(arch, file, choices, metadata, options, bool(weighted)),
        assignment=Assignment(
            "gguf",
            label,
            {o.canonical: choices[o.name].type for o in outputs if o.canonical},
            None if given is None else given.predicted,
        ),
        evidence=evidence,
    )


def choices_of(
    view: ModelView,
    arch: Arch,
    file: FileType,
    outputs: Sequence[Untyped],
    options: GgufOptions,
    given: Assignment | None,
    notes: list[str],
) -> dict[str, Choice]:
    """The type of each tensor, by GGUF name; what a user should know goes into the notes."""
    hyper = view.hyper
    shapes = [TensorShape(output.name, output.shape) for output in outputs]
    model = MixtureModel(
        arch=arch.name,
        layers=view.layers + view.mtp_layers,
        heads=hyper.heads,
        kv_heads=hyper.kv_heads,
        experts=hyper.experts.count if hyper.experts else 0,
        mtp_layers=view.mtp_layers,
    )
    overrides = Overrides(options.tensor_types, options.output_type, options.embedding_type)
    chosen = choose_types(
        file.name, shapes, model, has_imatrix=options.imatrix is not None, overrides=overrides
    )
    chosen = protect_mtp(chosen, shapes, model, options.mtp_type)
    if given is not None:
        named = {o.name: given.types[o.canonical] for o in outputs if o.canonical in given.types}
        asked = {Reason.OVERRIDE, *((Reason.MTP,) if options.mtp_type else ())}
        chosen = follow(chosen, shapes, named, keep=asked)
        notes += given.missing([output.canonical for output in outputs if output.canonical])
    for pattern, _ in options.tensor_types if file.is_quantized else ():
        if not any(compile_pattern(pattern).search(shape.name) for shape in shapes):
            notes.append(f"--tensor-type {pattern!r} matches no tensor")
    fallen = [(name, choice) for name, choice in chosen.items() if choice.fallback_from]
    for wanted, got in sorted({(c.fallback_from or "", c.type) for _, c in fallen}):
        names = [name for name, c in fallen if (c.fallback_from, c.type) == (wanted, got)]
        notes.append(
            f"{counted(len(names), 'tensor has', 'tensors have')} rows that are no whole number of "
            f"{wanted} blocks and become {got}, "
            f"as llama-quantize does: {some(names, 4)}"
        )
    return chosen


def given_types(view: ModelView, files: Sequence[str], options: GgufOptions) -> Assignment | None:
    """The types of ``--types-from``, from JSON or from another GGUF's header.

    Args:
        files: the types of the files that are to have them: one, and no float's.

    Raises:
        UsageProblem: there are several.
        InputError: it cannot be read, or is of another model.
    """
    path = options.types_from
    if path is None or isinstance(path, Assignment):
        return path
    if len(files) > 1 or not file_type(files[0]).is_quantized:
        raise UsageProblem(
            f"--types-from says the types of one quantized file, not of {' and '.join(files)}",
            hint="Give one -q: it names the file, and what the other file does not say is chosen by it.",
        )
    arch = arch_of(view)
    names = {output.name: output.canonical for output in outputs_of(arch, view)}
    if read_head(path).startswith(b"GGUF"):
        info = read_gguf(path)
        if info.architecture != arch.name:
            raise InputError(f"{path.name} is of architecture {info.architecture}, the model is {arch.name}")
        found = {names.get(name, name): kind for name, kind in info.tensors.items() if names.get(name) != ""}
        given = Assignment("gguf", path.name, found)
    else:
        given = read_types(path, "gguf")
    given.check({tensor.name for tensor in view}, ggml_type)
    return given


def _weighted(
    file: FileType,
    outputs: Sequence[Untyped],
    choices: Mapping[str, Choice],
    options: GgufOptions,
    evidence: Evidence,
    notes: list[str],
) -> set[str]:
    """The tensors whose errors importance weighs. What is missing goes into the notes."""
    quantized = [o for o in outputs if _uses_importance(choices[o.name].type)]
    if options.imatrix is None:
        needy = [o.name for o in quantized if requires_importance(o.name, choices[o.name].type, file.name)]
        if needy:
            raise InputError(
                f"{file.name} needs an importance matrix ({some(needy, 4)})",
                hint="--imatrix collects one, --imatrix FILE gives one; or choose Q2_K or a larger type.",
            )
        return set()
    if not quantized:
        notes.append(f"{file.name} does not use the importance matrix")
        return set()
    known = {o.name for o in quantized if evidence.of(Kind.INPUT_SQUARES, o.canonical) is not None}
    missing = [output.name for output in quantized if output.name not in known]
    needy = [name for name in missing if requires_importance(name, choices[name].type, file.name)]
    if needy:
        raise InputError(
            f"{file.name} needs importance data for {some(needy, 4)}, which the matrix lacks",
            hint=r"Give those tensors a larger type (--tensor-type 'REGEX=Q4_K'), or choose Q2_K.",
        )
    cold = cold_experts(options.imatrix, known)
    if cold:
        unseen, experts = (sum(counts) for counts in zip(*cold.values(), strict=True))
        notes.append(
            f"{unseen} of {experts} experts in {counted(len(cold), 'tensor')} saw no token; they are "
            "quantized as if "
            f"all columns mattered alike: {some(list(cold), 4)}"
        )
    if missing:
        notes.append(
            f"the importance matrix has nothing for {len(missing)} of {len(quantized)} tensors; "
            f"they are quantized without it: {some(missing, 4)}"
        )
    return known


def _uses_importance(type_name: str) -> bool:
    stored = ggml_stored(type_name)
    return isinstance(stored, Blocks | Nvfp4Blocks) and stored.uses_importance


def _metadata_options(options: GgufOptions) -> MetadataOptions:
    general = GeneralOptions(name=options.model_name, quantized_by=options.quantized_by)
    # The converter gives every token of a Llama-style tokenizer.json the same score, and llama.cpp then
    # merges in another order than the model was trained with; a file that reads text wrongly is no export.
    return MetadataOptions(general=general, pre_tokenizer=options.pre_tokenizer, scores_from_merges=True)


def _imatrix_metadata(options: GgufOptions) -> dict[str, KV]:
    """What llama-quantize writes about the matrix (tools/quantize/quantize.cpp), without the host's path."""
    matrix = options.imatrix
    if matrix is None:
        return {}
    dataset = posixpath.basename(matrix.datasets[0].replace("\\", "/")) if matrix.datasets else ""
    result = {"quantize.imatrix.file": string(matrix.label[:_KV_STRING])}
    if dataset:
        result["quantize.imatrix.dataset"] = string(dataset[:_KV_STRING])
    result["quantize.imatrix.entries_count"] = u32(len(matrix.entries))
    if matrix.chunk_count > 0:
        result["quantize.imatrix.chunks_count"] = u32(matrix.chunk_count)
    return result


def _details(
    arch: Arch,
    file: FileType,
    choices: Mapping[str, Choice],
    metadata: Mapping[str, KV],
    options: GgufOptions,
    importance_used: bool,
) -> dict[str, Any]:
    histogram: dict[str, int] = {}
    for choice in choices.values():
        histogram[choice.type] = histogram.get(choice.type, 0) + 1
    return {
        "architecture": arch.name,
        "file_type": file.name,
        "tensor_types": dict(sorted(histogram.items(), key=lambda item: -item[1])),
        "mtp_type": options.mtp_type or "mixture, at least Q6_K",
        "importance_matrix": options.imatrix.label if options.imatrix and importance_used else None,
        "metadata_keys": len(metadata),
    }
