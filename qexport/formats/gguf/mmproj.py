"""The vision tower as llama.cpp reads it: a file of its own beside the model's, ``mmproj-BF16.gguf``.

Names, types, keys and their order are those of the converter's ``--mmproj`` (``conversion/qwen3vl.py``,
``conversion/gemma.py`` and ``MmprojModel`` in ``conversion/base.py`` of llama.cpp), and tensors stand as they
do in the checkpoint: the files are equal from the first byte to the last. Readers tell such a file by its
name (``file_name.py``) and take, of several, the nearest in bits to the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.tensors import matrix_shape
from qexport.codecs.contract import ggml_stored
from qexport.codecs.ggml_types import ggml_type
from qexport.container.gguf_write import (
    KV,
    TensorInfo,
    ValueType,
    array,
    boolean,
    f32,
    header_bytes,
    padded,
    string,
    u32,
)
from qexport.errors import InputError, UsageProblem
from qexport.families.roles import Block, Role
from qexport.families.vision import preprocessor
from qexport.formats.gguf.file_types import file_type
from qexport.formats.gguf.general import GeneralOptions, ParameterCounts, general_metadata
from qexport.formats.gguf.metadata import QUANTIZATION_VERSION
from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedFile, PlannedTensor, Region
from qexport.sizes import counted

if TYPE_CHECKING:
    from qexport.families.view import ModelTensor, ModelView
    from qexport.families.vision import VisionHyper
    from qexport.formats.gguf.options import GgufOptions


TYPES = ("F32", "F16", "BF16", "Q8_0")
_DEFAULT = "BF16"
# What clip.cpp computes with where a file says use_gelu.
_GELU = frozenset({"gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"})
_OUTSIDE = {
    Role.VISION_PATCH: "v.patch_embd",
    Role.VISION_POSITION: "v.position_embd",
    Role.VISION_OUTPUT_NORM: "v.post_ln",
    Role.VISION_PROJECTOR_UP: "mm.0",
    Role.VISION_PROJECTOR_DOWN: "mm.2",
    Role.VISION_PROJECTOR: "mm.input_projection",
    Role.VISION_PROJECTOR_NORM: "mm.soft_emb_norm",
}
_INSIDE = {
    Role.VISION_ATTN_NORM: "ln1",
    Role.VISION_ATTN_QKV: "attn_qkv",
    Role.VISION_ATTN_Q: "attn_q",
    Role.VISION_ATTN_K: "attn_k",
    Role.VISION_ATTN_V: "attn_v",
    Role.VISION_ATTN_OUTPUT: "attn_out",
    Role.VISION_FFN_NORM: "ln2",
    Role.VISION_FFN_UP: "ffn_up",
    Role.VISION_FFN_DOWN: "ffn_down",
}


_DEEPSTACK = {
    Role.VISION_DEEPSTACK_NORM: "norm",
    Role.VISION_DEEPSTACK_UP: "fc1",
    Role.VISION_DEEPSTACK_DOWN: "fc2",
}


@dataclass(frozen=True)
class _Output:
    """A tensor of the file, and how its rows come of the tower's."""

    name: str
    tensor: ModelTensor
    arrangement: Arrangement

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrangement.shape or self.tensor.shape


def projector_types(options: GgufOptions) -> tuple[str, ...]:
    """The types that are asked for; BF16 where none is.

    Raises:
        UsageProblem: one that a tower is not stored in.
    """
    named = tuple(dict.fromkeys(file_type(name).name for name in options.mmproj)) or (_DEFAULT,)
    if odd := [name for name in named if name not in TYPES]:
        raise UsageProblem(f"--mmproj {odd[0]}: a vision tower is stored as {', '.join(TYPES)}")
    return () if options.no_mmproj else named


def plan_mmproj(view: ModelView, options: GgufOptions) -> tuple[ArtifactPlan, ...]:
    """One plan per type; none where there is no tower, or it is not wanted.

    Raises:
        UsageProblem: types are named, and there is no tower.
        InputError: types are named, and llama.cpp could not read the tower.
    """
    types = projector_types(options)
    if options.mmproj and types:
        if view.vision is None:
            raise UsageProblem(
                f"--mmproj, but {view.label} has no vision tower",
                hint="--vision-from BASE takes that of the model that was fine-tuned.",
            )
        if (why := _unfit(view, view.vision)) is not None:
            raise InputError(f"{view.label}: no mmproj file can be written: {why}")
    if view.vision is None or _unfit(view, view.vision) is not None:
        return ()
    outputs = _outputs(view, view.vision)
    return tuple(_plan_one(view, view.vision, name, outputs, options) for name in types)


def sight_notes(view: ModelView, options: GgufOptions) -> list[str]:
    """For the plan of the model's own file: where its tower goes."""
    if view.vision is None:
        return []
    count = sum(tensor.block is Block.VISION for tensor in view)
    alone = f"the vision tower is left out ({counted(count, 'tensor')}): the file takes text alone"
    if (why := _unfit(view, view.vision)) is not None:
        return [f"{alone}; no mmproj file can be written: {why}"]
    names = " and ".join(_file_name(name) for name in projector_types(options))
    return (
        [f"the vision tower ({counted(count, 'tensor')}) goes into {names}, beside the file"]
        if names
        else [alone]
    )


def _file_name(type_name: str) -> str:
    return f"mmproj-{type_name}.gguf"


def _unfit(view: ModelView, vision: VisionHyper) -> str | None:
    """Why llama.cpp cannot have this tower."""
    arch, config = view.hyper.family.arch, vision.config
    if arch is None or not arch.projector:
        return f"llama.cpp knows no projector of {view.family}"
    missing = [key for key in ("image_mean", "image_std") if not _three(preprocessor(view.files).get(key))]
    if missing:
        return f"there is no preprocessor_config.json that gives {' and '.join(missing)}"
    if config["hidden_act"] not in _GELU:
        return f"vision_config.hidden_act is {config['hidden_act']!r}, and llama.cpp has GELU"
    if vision.dims.get("v_temporal", 2) != 2 or vision.dims["v_channels"] != 3:
        return "llama.cpp takes two frames of three colours at a time, and this tower other numbers"
    return None


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value)


def _outputs(view: ModelView, vision: VisionHyper) -> list[_Output]:
    """The tensors of the file, as they stand in the checkpoint."""
    outputs: list[_Output] = []
    for tensor in sorted((t for t in view if t.block is Block.VISION), key=_place):
        suffix = "bias" if tensor.name.endswith("bias") else "weight"
        name = f"{_stem(tensor, vision)}.{suffix}"
        if tensor.role is Role.VISION_PATCH and len(tensor.shape) == 5:
            outputs += [
                _Output(name + after, tensor, _frame(tensor.shape, frame))
                for frame, after in enumerate(("", ".1"))
            ]
            continue
        plus_one = tensor.role is Role.VISION_PROJECTOR_NORM
        outputs.append(_Output(name, tensor, Arrangement(op="add_one" if plus_one else "none")))
    return outputs


def _stem(tensor: ModelTensor, vision: VisionHyper) -> str:
    if tensor.role in _OUTSIDE:
        return _OUTSIDE[tensor.role]
    assert tensor.layer is not None
    if tensor.role in _DEEPSTACK:  # called after the block whose output it takes
        return f"v.deepstack.{vision.deepstack[tensor.layer]}.{_DEEPSTACK[tensor.role]}"
    return f"v.blk.{tensor.layer}.{_INSIDE[tensor.role]}"


def _place(tensor: ModelTensor) -> tuple[str, int]:
    piece = tensor.data.pieces[0]
    stored = piece.checkpoint.tensors[piece.name]
    return stored.file, stored.start


def _frame(shape: tuple[int, ...], frame: int) -> Arrangement:
    """One of the two frames that a patch is made of: [out, colours, frames, height, width] without frames."""
    import numpy as np

    rows, _ = matrix_shape(shape)
    order = np.arange(rows).reshape(shape[:-1])[:, :, frame].reshape(-1)
    return Arrangement(shape=(*shape[:2], *shape[3:]), row_order=order)


def _type_of(output: _Output, type_name: str) -> str:
    """The converter's choice (``tensor_force_quant``, ``prepare_tensors``)."""
    role, shape = output.tensor.role, output.shape
    if len(shape) == 1 or role is Role.VISION_POSITION:
        return "F32"
    if role is Role.VISION_PROJECTOR:
        return "F16"
    if role is Role.VISION_PATCH:
        return "F16" if type_name == "F16" and len(output.tensor.shape) == 5 else "F32"
    kind = ggml_type(type_name)
    return type_name if not shape[-1] % kind.block else "F16"


def _plan_one(
    view: ModelView, vision: VisionHyper, type_name: str, outputs: Sequence[_Output], options: GgufOptions
) -> ArtifactPlan:
    notes: list[str] = []
    infos: list[TensorInfo] = []
    kinds = [ggml_type(_type_of(output, type_name)) for output in outputs]
    at = 0
    for output, kind in zip(outputs, kinds, strict=True):
        rows, columns = matrix_shape(output.shape)
        infos.append(TensorInfo(output.name, output.shape, kind.id, at))
        at = padded(at + rows * kind.row_bytes(columns))
    metadata = _metadata(view, vision, type_name, outputs, options, notes)
    header = header_bytes(metadata, infos)
    tensors: list[PlannedTensor] = []
    for output, kind, info in zip(outputs, kinds, infos, strict=True):
        rows, columns = matrix_shape(output.shape)
        region = Region(0, len(header) + info.offset, rows * kind.row_bytes(columns))
        tensors.append(
            PlannedTensor(
                output.name,
                output.shape,
                output.tensor.data,
                output.arrangement,
                ggml_stored(kind.name),
                ((region,),),
            )
        )
    name = _file_name(type_name)
    return ArtifactPlan(
        kind="mmproj",
        label=name.removesuffix(".gguf"),
        files=(PlannedFile(name, len(header) + at, header),),
        tensors=tuple(tensors),
        notes=tuple(notes),
        details={
            "architecture": "clip",
            "file_type": type_name,
            "projector": metadata["clip.projector_type"].value,
            "tensor_types": dict(Counter(kind.name for kind in kinds).most_common()),
            "metadata_keys": len(metadata),
        },
    )


def _metadata(
    view: ModelView,
    vision: VisionHyper,
    type_name: str,
    outputs: Sequence[_Output],
    options: GgufOptions,
    notes: list[str],
) -> dict[str, KV]:
    counts = ParameterCounts.of({output.name: output.shape for output in outputs})
    general = GeneralOptions(name=options.model_name, quantized_by=options.quantized_by)
    dims, seen = vision.dims, preprocessor(view.files)
    arch = view.hyper.family.arch
    assert arch is not None
    found = general_metadata(view, "clip", counts, general, notes) | {"general.type": string("mmproj")}
    found |= {
        "general.file_type": u32(file_type(type_name).id),
        "clip.has_vision_encoder": boolean(True),
        "clip.vision.projection_dim": u32(vision.hidden),
        "clip.vision.image_size": u32(_image_size(vision)),
        "clip.vision.patch_size": u32(dims["v_patch"]),
        "clip.vision.embedding_length": u32(dims["v_hidden"]),
        "clip.vision.feed_forward_length": u32(dims["v_inner"]),
        "clip.vision.block_count": u32(vision.layers),
        "clip.vision.attention.head_count": u32(dims["v_heads"]),
        "clip.vision.image_mean": array(ValueType.F32, seen["image_mean"]),
        "clip.vision.image_std": array(ValueType.F32, seen["image_std"]),
        "clip.projector_type": string(arch.projector),
    }
    own = _merger if "v_merge" in dims else _siglip
    return {**found, **own(view, vision), "general.quantization_version": u32(QUANTIZATION_VERSION)}


def _image_size(vision: VisionHyper) -> int:
    """The side of the largest image that every position has an embedding for."""
    given = vision.config.get("image_size")
    if type(given) is int:
        return given
    return int(vision.dims["v_positions"] ** 0.5 * vision.dims["v_patch"])


def _merger(view: ModelView, vision: VisionHyper) -> Mapping[str, KV]:
    """Of a tower whose projector merges neighbouring patches; its epsilon is the language model's there."""
    return {
        "clip.use_gelu": boolean(True),
        "clip.vision.spatial_merge_size": u32(vision.dims["v_merge"]),
        "clip.vision.attention.layer_norm_epsilon": f32(view.hyper.epsilon),
        "clip.vision.is_deepstack_layers": array(
            ValueType.BOOL, [block in vision.deepstack for block in range(vision.layers)]
        ),
    }


def _siglip(view: ModelView, vision: VisionHyper) -> Mapping[str, KV]:
    """Of a tower that sees all images in one size; four by four patches become a token, or it is said."""
    side = int(int(preprocessor(view.files).get("image_seq_length", 256)) ** 0.5)
    factor = vision.dims["v_image"] // vision.dims["v_patch"] // max(1, side)
    scale = {} if factor in (0, 4) else {"clip.vision.projector.scale_factor": u32(factor)}
    return {
        "clip.vision.attention.layer_norm_epsilon": f32(vision.config["layer_norm_eps"]),
        "clip.use_gelu": boolean(True),
        **scale,
    }
