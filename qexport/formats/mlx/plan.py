"""The plan of an MLX folder: the trunk as ``mlx_lm convert`` writes it, the vision tower as ``mlx_vlm`` does,
and the MTP head where it is wanted.

Tensor bytes, config blocks and shard size are mlx-lm's; tensors lie in the order of the pass, as in every
format here, where mlx-lm has that of its modules. Readers go by name. The tower is never quantized; mlx-lm
passes over it, so that one folder serves both programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.errors import some
from qexport.evidence.sensitivity import filled
from qexport.evidence.store import Kind
from qexport.families.roles import Block, Role
from qexport.formats.feedback import feedback_notes, with_feedback
from qexport.formats.folder import plan_folder
from qexport.formats.gguf.importance import evidence_of
from qexport.formats.limits import check_limits
from qexport.formats.mlx.config import dump, generation_of, language_config, small_files, trunk_config
from qexport.formats.mlx.dialect import dialect_of, module_path, stored_name
from qexport.formats.mlx.given import given_types
from qexport.formats.mlx.head import (
    NORM_FORMAT,
    SIDECARS,
    drafter_config,
    head_tensors,
    manifest,
    runtime_contract,
    takes_scheme,
)
from qexport.formats.mlx.limits import MLX_LM
from qexport.formats.mlx.options import DTYPES
from qexport.formats.mlx.schemes import choose, is_matrix, override
from qexport.formats.mlx.tensors import plain, quantized
from qexport.formats.order import pass_order
from qexport.sizes import counted

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.evidence.store import Evidence, Need
    from qexport.families.family import Dialect, Tower
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.folder import FolderTensor
    from qexport.formats.mlx.options import MlxOptions
    from qexport.formats.mlx.schemes import Choices
    from qexport.formats.plan import ArtifactPlan


_METADATA = {"format": "mlx"}
_UNCOUNTED = (Role.LINEAR_A_LOG, Role.LINEAR_DT_BIAS)  # mlx-lm counts modules, and these are none


@dataclass
class _Job:
    """What the steps of one plan share."""

    repaired: Repaired
    view: ModelView
    dialect: Dialect
    options: MlxOptions
    dtype: str | None
    trunk: list[ModelTensor]
    tower: list[ModelTensor]
    head: list[ModelTensor]
    choices: Choices
    evidence: Evidence
    sized: bool
    notes: list[str] = field(default_factory=list)

    def wants(self, layout: str) -> bool:
        """Whether the head goes there."""
        return bool(self.head) and self.dialect.drafter is not None and layout in self.options.mtp


def plan_mlx(repaired: Repaired, options: MlxOptions, *, sized: bool = False) -> tuple[ArtifactPlan, ...]:
    """Plan the trunk's folder, and that of the drafter if there is a head and it is wanted; reads no data.

    Args:
        sized: for types that were chosen for an aim; then importance is that of ``filled``.

    Raises:
        InputError: mlx-lm has no such model, or the importance matrix belongs to another one.
    """
    view = repaired.view()
    dialect = dialect_of(view)
    limits = check_limits(view, MLX_LM)
    trunk = trunk_of(repaired)
    tower = tower_of(view, options)
    head = [tensor for tensor in pass_order(view) if tensor.block is Block.MTP]
    given = given_types(options.types_from, repaired, trunk, dialect)
    choices = choose(trunk, view, dialect, options, {} if given is None else given.types)
    notes = [*limits, *_wide(view, _dtype(repaired, options))]
    if given is not None:
        notes += given.missing([tensor.name for tensor in trunk if is_matrix(tensor)])
    weighted = [t for t in trunk if (scheme := choices.schemes[t.name]) and scheme.mode == "affine"]
    if options.head_scheme is not None and set(options.mtp) - {"none", "vllm-mlx"}:
        weighted += [t for t in head if takes_scheme(t, options.head_scheme)]
    evidence = evidence_of(view, options.importance)
    if sized:
        evidence = filled(evidence)
    if options.importance is not None:
        notes += _without_importance(weighted, evidence, sized=sized)
    dtype = _dtype(repaired, options)
    job = _Job(repaired, view, dialect, options, dtype, trunk, tower, head, choices, evidence, sized, notes)
    plans = [_plan_trunk(job)]
    if job.wants("drafter"):
        plans.append(_plan_drafter(job))
    return tuple(plans)


def trunk_of(repaired: Repaired) -> list[ModelTensor]:
    """The tensors of the trunk's folder but for a head in it, in the order of the pass."""
    tied = bool(repaired.text.get("tie_word_embeddings"))
    return [
        tensor
        for tensor in pass_order(repaired.view())
        if tensor.block not in (Block.VISION, Block.MTP) and not (tied and tensor.role is Role.OUTPUT)
    ]


def tower_of(view: ModelView, options: MlxOptions) -> list[ModelTensor]:
    """The tensors of the vision tower that go into the trunk's folder."""
    dialect = view.hyper.family.dialect
    if options.text_only or dialect is None or dialect.tower is None:
        return []
    return [tensor for tensor in view if tensor.block is Block.VISION]


def _needs(job: _Job, tensor: ModelTensor) -> tuple[Need, ...]:
    """Importance; a plain embedding has none, since nothing is multiplied with it by column."""
    if tensor.role is Role.TOKEN_EMBD and not job.sized:
        return ()
    return job.evidence.needed(Kind.INPUT_SQUARES, tensor.name)


def _without_importance(weighted: Sequence[ModelTensor], evidence: Evidence, *, sized: bool) -> list[str]:
    missing = [
        tensor.name
        for tensor in weighted
        if (tensor.role is Role.TOKEN_EMBD and not sized)
        or evidence.of(Kind.INPUT_SQUARES, tensor.name) is None
    ]
    if not missing:
        return []
    return [
        f"the importance matrix has nothing for {len(missing)} of {len(weighted)} tensors; "
        f"they are quantized as mlx-lm does: {some(missing, 4)}"
    ]


def _dtype(repaired: Repaired, options: MlxOptions) -> str | None:
    """The dtype that mlx-lm casts to: what the config says, at the place where it looks, or none."""
    if options.dtype is not None:
        return DTYPES[options.dtype]
    said = repaired.config.get("torch_dtype")
    inner = repaired.config.get("text_config")
    if said is None and isinstance(inner, dict):
        said = inner.get("dtype")
    return DTYPES.get(said) if isinstance(said, str) else None


def _wide(view: ModelView, dtype: str | None) -> list[str]:
    """Where a model is float32, mlx-lm keeps everything beside the codes so: that is worth a word."""
    if not view.wide or dtype not in (None, "F32"):
        return []
    return ["the source is float32, and so is what is not quantized, scales too: --dtype bfloat16 halves it"]


def _plan_trunk(job: _Job) -> ArtifactPlan:
    options, dialect, schemes = job.options, job.dialect, job.choices.schemes
    tensors: list[FolderTensor] = []
    quantization: dict[str, Any] = {
        "group_size": options.scheme.group_size,
        "bits": options.scheme.bits,
        "mode": options.scheme.mode,
    }
    for tensor in job.trunk:
        for name in _names(job, tensor):
            tensors.append(_trunk_tensor(job, tensor, name))
            scheme = schemes[tensor.name]
            if scheme is not None and tensor.name in job.choices.overrides:
                quantization[module_path(name)] = override(scheme, recipe=options.recipe is not None)
    if job.wants("embedded"):
        inside = _head(job, job.dialect.prefix + _tower(job).prefix, quantize=True)
        quantization |= {
            module_path(made.name): override(options.head_scheme, recipe=True)
            for made in inside
            if options.head_scheme is not None and len(made.streams) > 1
        }
        tensors += inside
        job.notes.append("the MTP head is among the tensors: mlx-lm up to 0.31.3 misreads such a folder")
        if job.tower:
            job.notes.append("with the MTP head among its tensors oMLX takes the model for one of text alone")
    if options.feedback:
        job.notes += feedback_notes(tensors)
    inside_too = any(job.wants(layout) for layout in ("embedded", *SIDECARS))
    tensors += [plain(tensor, stored_name(dialect, job.repaired, tensor), job.dtype) for tensor in job.tower]
    sees = bool(job.tower)
    config = trunk_config(job.repaired, job.view, dialect, quantization, head=inside_too, sees=sees)
    small = small_files(job.repaired, sees=sees)
    sidecars = _sidecars(job, config, small)
    small["config.json"] = dump(config)
    _say(job)
    return plan_folder(
        "mlx",
        options.label,
        tensors,
        small,
        max_shard=options.max_shard_size,
        metadata=_METADATA,
        parameters=sum(
            tensor.data.numel for tensor in (*job.trunk, *job.tower) if tensor.role not in _UNCOUNTED
        ),
        always_index=True,
        index_indent=4,
        beside=sidecars,
        notes=job.notes,
        details=_details(job),
        assignment=job.choices.assignment(options.label),
        evidence=job.evidence,
    )


def _names(job: _Job, tensor: ModelTensor) -> list[str]:
    """What the tensor is called in the folder; an embedding is the output, too, where mlx-vlm wants both."""
    name = stored_name(job.dialect, job.repaired, tensor)
    twice = bool(job.tower) and job.dialect.output_twice and job.view.hyper.tied
    if not twice or tensor.role is not Role.TOKEN_EMBD:
        return [name]
    return [name, name.replace("model.embed_tokens.", "lm_head.")]


def _trunk_tensor(job: _Job, tensor: ModelTensor, name: str) -> FolderTensor:
    dialect, scheme = job.dialect, job.choices.schemes[tensor.name]
    if scheme is None:
        kept = None if tensor.role in dialect.keeps_float32 else job.dtype
        return plain(tensor, name, kept, add_one=tensor.role in dialect.norms_plus_one)
    made = quantized(tensor, name, scheme, job.dtype, _needs(job, tensor))
    return with_feedback(made, tensor, job.evidence) if job.options.feedback else made


def _head(job: _Job, prefix: str, *, quantize: bool) -> list[FolderTensor]:
    scheme = job.options.head_scheme if quantize else None
    return head_tensors(job.head, _tower(job).prefix, prefix, scheme, job.dtype, job.evidence)


def _tower(job: _Job) -> Tower:
    assert job.repaired.family.head is not None
    return job.repaired.family.head


def _sidecars(
    job: _Job, config: dict[str, Any], small: dict[str, bytes]
) -> dict[str, Sequence[FolderTensor]]:
    """Files of the head inside the trunk's folder; ``config`` and ``small`` get what goes with them."""
    files: dict[str, Sequence[FolderTensor]] = {}
    if job.wants("mtplx"):
        files[SIDECARS["mtplx"]] = _head(job, _tower(job).prefix, quantize=True)
        contract, keys = runtime_contract(generation_of(job.repaired), job.options.head_scheme)
        small["mtplx_runtime.json"] = contract
        config |= keys
    if job.wants("vllm-mlx"):
        head = _head(job, _tower(job).prefix, quantize=False)
        files[SIDECARS["vllm-mlx"]] = head
        small["mtp/manifest.json"] = manifest(job.view.label, [tensor.name for tensor in head])
        for part in (config, language_config(config)):
            part["num_nextn_predict_layers"] = job.view.mtp_layers
        if job.options.head_scheme is not None:
            job.notes.append("vllm-mlx reads no quantized head of another width: its file is not quantized")
    return files


def _plan_drafter(job: _Job) -> ArtifactPlan:
    scheme = job.options.head_scheme
    trunk = trunk_config(job.repaired, job.view, job.dialect, {}, head=True, sees=False)
    text = language_config(trunk)
    small = small_files(job.repaired, sees=False)
    small.pop("generation_config.json", None)
    small["config.json"] = dump(drafter_config(text, scheme, job.dialect), indent=2)
    tensors = _head(job, "", quantize=True)
    return plan_folder(
        "mlx-drafter",
        f"{job.options.label}-MTP",
        tensors,
        small,
        metadata=_METADATA,
        details={
            "layout": "mlx-vlm drafter",
            "head": scheme.label if scheme else job.dtype or "as stored",
            "norms": NORM_FORMAT,
            "tensors": sum(len(tensor.specs) for tensor in tensors),
        },
        evidence=job.evidence,
    )


def _say(job: _Job) -> None:
    if job.choices.misfits:
        names, group = job.choices.misfits, job.options.scheme.group_size
        job.notes.append(
            f"{counted(len(names), 'matrix has', 'matrices have')} rows that do not divide into groups "
            f"of {group}: "
            f"not quantized, as in mlx-lm: {some(names, 4)}"
        )
    if job.view.vision is not None and not job.tower:
        count = sum(tensor.block is Block.VISION for tensor in job.view)
        job.notes.append(f"the vision tower is left out ({count} tensors): the folder takes text alone")
    if job.head and job.dialect.drafter is None:
        job.notes.append(f"the MTP head is left out: no MLX runtime reads that of {job.view.family}")
    elif job.head and "none" in job.options.mtp:
        job.notes.append("the MTP head is left out, and none is declared")


def _details(job: _Job) -> dict[str, Any]:
    schemes = Counter(job.choices.schemes.values())
    schemes[None] += len(job.tower)
    labels = {scheme.label if scheme else job.dtype or "as stored": n for scheme, n in schemes.items() if n}
    matrix = job.options.importance
    return {
        "mode": job.options.mode,
        "recipe": job.options.recipe,
        "tensor_types": dict(sorted(labels.items(), key=lambda item: -item[1])),
        "vision_tensors": len(job.tower),
        "importance_matrix": matrix.label if matrix else None,
        "mtp_layouts": (list(job.options.mtp) if job.dialect.drafter else ["none"]) if job.head else [],
        "mtp_type": (job.options.head_scheme.label if job.options.head_scheme else job.dtype or "as stored")
        if job.head and job.dialect.drafter and "none" not in job.options.mtp
        else None,
        "norms": NORM_FORMAT if job.dialect.norms_plus_one else "as stored",
    }
