"""Quirks of the tensors themselves: files, layers, dtypes, expert layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qexport.checkpoint.layout import INDEX_NAME
from qexport.checkpoint.tensors import LogicalTensor
from qexport.doctor.draft import Draft
from qexport.doctor.layout import ExpertLayout, convert_experts, expert_layouts, trunk_layout
from qexport.doctor.quirk import Quirk, as_read
from qexport.doctor.subject import Subject
from qexport.doctor.turned import MlxSaved, underneath
from qexport.sizes import counted

# In float32 on purpose, or too small to matter: decay rates, norms, the short convolution.
_MAY_BE_WIDE = re.compile(r"(A_log|dt_bias|conv1d\.weight|norm\d?\.weight|\.bias)$")


def _such_as(names: Sequence[str], noun: str = "tensors") -> str:
    """One by its name, more by their number; nothing for none."""
    if len(names) < 2:
        return "".join(names)
    return f"{len(names)} {noun}, such as {names[0]}"


# --- files --------------------------------------------------------------------------------------------------


def _empty(subject: Subject) -> str | None:
    stored = subject.checkpoint.tensors
    empty = [tensor for tensor in stored.values() if not tensor.numel]
    if not empty:
        return None
    shown = f"{empty[0].name}, shape {list(empty[0].shape)}"
    return f"{len(empty)} of {len(stored)} tensors are empty, such as {shown}, as ZeRO-3 saves its parts"


def _stale_index(subject: Subject) -> str | None:
    checkpoint = underneath(subject.checkpoint)
    why = getattr(checkpoint, "stale_index", None)
    read = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    return f"{INDEX_NAME} is stale: {why}; {_such_as(read, 'files')} read instead" if why else None


# --- layers -------------------------------------------------------------------------------------------------


def _layer_numbers(subject: Subject) -> set[int]:
    trunk = subject.tensors.keys() - subject.head.keys()
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name in trunk)
    return {int(match[1]) for match in found if match}


def _layers_lost(subject: Subject) -> str | None:
    numbers = _layer_numbers(subject)
    lost = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
    if not lost:
        return None
    shown = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
    return f"the tensors have layers 0 to {max(numbers)}, but none of layer {shown}"


def _layer_count(subject: Subject) -> str | None:
    declared, numbers = subject.text.get("num_hidden_layers"), _layer_numbers(subject)
    count = len(numbers)
    if type(declared) is not int or not numbers or _layers_lost(subject) or declared == count:
        return None
    what = f"{count - declared} too many" if count > declared else f"{declared - count} missing"
    return (
        f"config.json says num_hidden_layers {declared}, the tensors have {count} (0 to {count - 1}): {what}"
    )


# --- dtypes -------------------------------------------------------------------------------------------------


def _stray(tensors: Mapping[str, LogicalTensor], dtype: str) -> list[str]:
    return [
        name
        for name, tensor in tensors.items()
        if "F32" == tensor.dtype != dtype and len(tensor.shape) > 1 and not _MAY_BE_WIDE.search(name)
    ]


def _round_stray(draft: Draft) -> None:
    dtype = draft.subject.dtype
    for name in _stray(draft.tensors, dtype):
        draft.tensors[name] = replace(draft.tensors[name], dtype=dtype)


def _mixed(subject: Subject) -> str | None:
    half = {"BF16": "F16", "F16": "BF16"}.get(subject.dtype)
    other = [name for name, tensor in subject.tensors.items() if tensor.dtype == half]
    return f"{_such_as(other)} in {half} in a checkpoint of {subject.dtype}" if other else None


def _a_log(subject: Subject) -> str | None:
    narrow = [n for n, t in subject.tensors.items() if n.endswith("linear_attn.A_log") and t.dtype != "F32"]
    if not narrow:
        return None
    dtype = subject.tensors[narrow[0]].dtype
    return f"A_log is {dtype} in {counted(len(narrow), 'layer')}; the published models keep float32"


# --- experts ------------------------------------------------------------------------------------------------


def _other_experts(subject: Subject) -> str | None:
    found = expert_layouts(subject.tensors)
    odd = [block for block, layout in found.items() if layout is ExpertLayout.OTHER]
    kinds = {layout for block, layout in found.items() if block.startswith("model.")} - {ExpertLayout.OTHER}
    if odd:
        return f"the experts of {odd[0]}* ({len(odd)} blocks) are neither fused nor one by one as published"
    return "the experts of some layers are fused and those of others one by one" if len(kinds) > 1 else None


def _mtp_experts(subject: Subject) -> str | None:
    trunk = trunk_layout(subject.tensors)
    heads = set(expert_layouts({name: subject.tensors[name] for name in subject.head}).values())
    heads -= {ExpertLayout.OTHER}
    if trunk is None or not heads or heads == {trunk}:
        return None
    return f"the experts of the MTP head are {heads.pop()}, those of the model {trunk}"


def _unify_experts(draft: Draft) -> None:
    published = ExpertLayout.FUSED if draft.subject.family.multimodal else ExpertLayout.SINGLE
    layout = trunk_layout(draft.tensors, published)
    if layout is not None:
        draft.tensors = convert_experts(draft.tensors, layout)


def _mlx_saved(subject: Subject) -> str | None:
    saved = subject.checkpoint
    if not isinstance(saved, MlxSaved):
        return None
    added = f", one was added to {len(saved.norms)} norms" if saved.norms else ""
    return f"saved by {'mlx-vlm' if saved.sees else 'mlx-lm'}: convolutions are turned{added}"


WEIGHT_QUIRKS = (
    Quirk(
        "weights.empty",
        "empty tensors, as ZeRO-3 leaves them",
        see=_empty,
        explains=True,
        repair=(
            "Gather the weights: `python zero_to_fp32.py . out --safe_serialization` in the checkpoint's "
            "folder, or train and save with `stage3_gather_16bit_weights_on_model_save: true`."
        ),
        breaks={"transformers": "size mismatch: copying a param with shape torch.Size([0])"},
        reference="https://huggingface.co/docs/transformers/deepspeed#save-model-weights",
    ),
    Quirk(
        "weights.mlx_saved",
        "saved by mlx-lm or mlx-vlm: convolutions turned, one added to norms",
        see=_mlx_saved,
        fix=as_read,
        repair=(
            "Convolutions are turned back, the same bytes; one is taken off the norms. What was rounded off "
            "when it was added (up to 2**-8 in bf16) is lost: the model computes what it computes in mlx-lm."
        ),
        breaks={
            "transformers, vLLM": "size mismatch for conv1d.weight, and norms that are too strong",
            "mlx-lm itself": "reads its own saves rightly",
        },
        reference="https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/qwen3_5.py",
    ),
    Quirk(
        "weights.stale_index",
        "an index of an earlier save beside a complete model",
        see=_stale_index,
        fix=as_read,
        repair="The complete one is read; what is written has an index of its own, or needs none.",
        breaks={"vLLM, llama.cpp's converter": "FileNotFoundError, or the weights of the earlier save"},
    ),
    Quirk(
        "weights.leftover",
        "safetensors files that are no part of the model",
        see=lambda s: _such_as(getattr(underneath(s.checkpoint), "unused", ()), "files"),
        what="no part of the model, and not read: {found}",
        repair="They are not read. Remove them where a reader takes every file: vLLM did.",
    ),
    Quirk(
        "layers.lost",
        "layers missing from the middle",
        error=True,
        see=_layers_lost,
        repair="A shard is missing or was left out of a merge: download or save the model again.",
        breaks={"any": "the layer is newly initialized, or the file is refused"},
    ),
    Quirk(
        "layers.count",
        "more or fewer layers than config.json says",
        error=True,
        see=_layer_count,
        repair=(
            "If layers were cut or stacked on purpose, write the number into num_hidden_layers (and "
            "layer_types); if not, config.json or weights belong to another model: copy or save them again."
        ),
        breaks={
            "transformers": "too many are left out without a word, missing ones are newly initialized",
            "llama.cpp": "missing tensor 'blk.N.attn_norm.weight'",
        },
    ),
    Quirk(
        "dtype.stray_fp32",
        "a few matrices in float32 in a 16-bit checkpoint",
        see=lambda s: _such_as(_stray(s.tensors, s.dtype)),
        what="{found} in float32 in a checkpoint of {s.dtype}",
        fix=_round_stray,
        repair="They are rounded to the dtype of the rest; A_log, dt_bias, norms and convolutions stay.",
        breaks={
            "vLLM, SGLang": "twice the memory for these",
            "llama.cpp's converter": "writes F32 where the rest is BF16",
        },
    ),
    Quirk(
        "dtype.wide",
        "all weights in float32",
        see=lambda s: s.dtype == "F32",
        what="the weights are float32: a merge that did not go back to bfloat16",
        repair=(
            "GGUF and NVFP4 store 16 bits where they do not quantize; a repaired checkpoint, MLX (but with "
            "--dtype bfloat16) and FP8 keep float32."
        ),
        breaks={"any": "twice the size and memory of bfloat16 for what is not quantized"},
    ),
    Quirk(
        "dtype.mixed",
        "bfloat16 and float16 side by side",
        see=_mixed,
        repair="Each tensor is taken as it is stored.",
        breaks={"transformers": "casts all to config.json's dtype on loading"},
    ),
    Quirk(
        "dtype.a_log",
        "A_log rounded to 16 bits",
        see=_a_log,
        repair="Nothing to repair: the rounding has happened. Save with the dtype of A_log kept to avoid it.",
        breaks={"any": "decay rates a little off; accuracy may drift on long contexts"},
    ),
    Quirk(
        "experts.layout",
        "experts in a layout that readers do not take, or in two layouts",
        see=_other_experts,
        fix=_unify_experts,
        repair="All layers get the layout of the first usual one, else that of the published models.",
        breaks={"transformers": "packed experts stay randomly initialised, silently"},
        reference="https://github.com/huggingface/transformers/issues/47407",
    ),
    Quirk(
        "experts.one_by_one",
        "experts one by one in a family whose published models fuse them",
        see=lambda s: s.family.multimodal and trunk_layout(s.tensors) is ExpertLayout.SINGLE,
        what=(
            "the experts are stored one by one, as transformers 5 saves them; "
            "published models have them fused"
        ),
        repair="The repaired checkpoint keeps the layout; each format writes the one that its readers take.",
        breaks={"mlx-lm 0.32": "stacks the fused form only: parameters not in model"},
    ),
    Quirk(
        "experts.mtp_layout",
        "experts of the MTP head in another layout than the model's",
        see=_mtp_experts,
        fix=_unify_experts,
        repair="The head's experts get the model's layout; the values stay as they are.",
        breaks={"mlx and Megatron converters": "look for one layout and miss the other"},
        reference="https://github.com/ISEEKYAN/mbridge/issues/145",
    ),
)
