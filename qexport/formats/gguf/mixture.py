"""Which type llama-quantize gives to every tensor, and our floor for the MTP block.

"Q4_K_M" names a recipe, not a type: most tensors become Q4_K, some of ``attn_v`` and ``ffn_down`` Q6_K, the
head Q6_K, norms stay float32. The recipe depends on names, widths, layer count, experts and attention heads,
on the order in which llama-quantize walks the tensors, and on whether it was given an importance matrix.
:func:`choose_types` gives the same answer for every file type of :data:`FILE_TYPES`, from shapes alone; the
goldens in tests/gguf were printed by ``llama-quantize --dry-run``. The rules live in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, and in conversion/base.py
(``prepare_tensors``) for what the converter keeps in float32.

:func:`protect_mtp` is our own rule on top: llama-quantize has no activations for the MTP block and gives its
projection the base type, which costs accepted drafts below 5 bits; a floor of Q6_K costs nothing measurable
(https://github.com/ggml-org/llama.cpp/pull/28351).

NVFP4 is no recipe of llama-quantize's: ours has the MLPs in NVFP4, as our folders have by default, and the
rest in Q8_0, as its ``MXFP4_MOE`` has it around experts.

Left out: ternary files, ``--pure``, ``--prune-layers``, the special rules of Falcon and
GLM5-next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from qexport.codecs.ggml import ABORTS_WITHOUT_IMPORTANCE, ONLY_GGML
from qexport.codecs.ggml_types import GGML_TYPES, ggml_type
from qexport.errors import InputError
from qexport.formats.gguf.file_types import FileType, file_type
from qexport.formats.gguf.mixture_terms import (
    EMBEDDINGS,
    OUTPUT,
    Choice,
    MixtureModel,
    Overrides,
    Reason,
    TensorShape,
    compile_pattern,
)
from qexport.formats.gguf.recipe import Walk, count_attn_v, is_tied

MTP_FLOOR = "Q6_K"


def walk_order(name: str) -> tuple[int, bytes]:
    """Sort key of llama-quantize's walk: tensors outside blocks first, then block by block, by name."""
    return TensorShape(name, ()).block, name.encode()


def choose_types(
    name: str,
    tensors: Sequence[TensorShape],
    model: MixtureModel,
    *,
    has_imatrix: bool = False,
    overrides: Overrides | None = None,
) -> dict[str, Choice]:
    """The type of every tensor in a file of type ``name``, in the order of ``tensors``.

    Float files are what llama.cpp's converter writes, quantized ones what llama-quantize makes of its BF16.
    """
    file = file_type(name)
    wanted = overrides or Overrides()
    patterns = [(compile_pattern(pattern), ggml_type(t).name) for pattern, t in wanted.tensor_types]
    walk = Walk(file, model, has_imatrix, wanted, is_tied(tensors), count_attn_v(tensors))
    chosen: dict[str, Choice] = {}
    for tensor in sorted(tensors, key=lambda t: walk_order(t.name)):
        if not _quantizable(tensor):
            chosen[tensor.name] = Choice(_converter_type(tensor, file), Reason.KEPT)
            continue
        manual = next((t for pattern, t in patterns if pattern.search(tensor.name)), None)
        if explicit := _explicit(tensor, wanted, named=manual is not None):
            choice = Choice(explicit, Reason.OVERRIDE)
        elif not file.is_quantized:
            choice = Choice(file.default, Reason.DEFAULT)
        elif manual is not None:
            choice = Choice(manual, Reason.OVERRIDE)
        else:
            choice = walk.choose(tensor)
        chosen[tensor.name] = _fall_back(choice, tensor)
    return {tensor.name: chosen[tensor.name] for tensor in tensors}


def protect_mtp(
    choices: Mapping[str, Choice],
    tensors: Sequence[TensorShape],
    model: MixtureModel,
    mtp_type: str | None = None,
) -> dict[str, Choice]:
    """``choices`` with the MTP blocks raised to Q6_K, or set to ``mtp_type``; ``"mixture"`` changes nothing.

    Only quantized tensors move, so a float file stays as it is and norms stay float32; what the user named
    with an override stays too. Types of more bits than Q6_K are kept.
    """
    result = dict(choices)
    if mtp_type is not None and mtp_type.lower() == "mixture":
        return result
    target = ggml_type(mtp_type or MTP_FLOOR)
    for tensor in tensors:
        choice = result[tensor.name]
        now = GGML_TYPES[choice.fallback_from or choice.type]
        if tensor.block < model.trunk_layers or choice.reason is Reason.OVERRIDE or not now.is_quantized:
            continue
        if mtp_type is not None or now.bits_per_weight < target.bits_per_weight:
            result[tensor.name] = _fall_back(Choice(target.name, Reason.MTP), tensor)
    return result


def follow(
    choices: Mapping[str, Choice],
    tensors: Sequence[TensorShape],
    given: Mapping[str, str],
    *,
    keep: Collection[Reason],
) -> dict[str, Choice]:
    """``choices`` with the types that are ``given`` by tensor name, but for those that have a reason to keep.

    Raises:
        InputError: a quantized type for what is never quantized.
    """
    result = dict(choices)
    for tensor in tensors:
        choice, name = result[tensor.name], given.get(tensor.name)
        if name is None or choice.reason in keep:
            continue
        if choice.reason is Reason.KEPT and ggml_type(name).is_quantized:
            raise InputError(f"{tensor.name} cannot be {name}: readers want it as floats")
        result[tensor.name] = _fall_back(Choice(name, Reason.GIVEN), tensor)
    return result


def requires_importance(tensor: str, type_name: str, file: str) -> bool:
    """Whether llama-quantize refuses this tensor without importance data: the smallest types, Q2_K inside a
    Q2_K_S file. It lets embeddings and the output through, and aborts where ggml has no way without."""
    if type_name in ABORTS_WITHOUT_IMPORTANCE:
        return True
    if tensor in (*EMBEDDINGS, OUTPUT):
        return False
    of_file = type_name == "Q2_K" and file_type(file).name == "Q2_K_S"
    return of_file or (type_name in ONLY_GGML and type_name != "IQ3_S")


# Small and sensitive. The converter writes these as float32 (conversion/base.py, prepare_tensors) ...
_CONVERTER_F32 = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d", "shortconv.conv.weight")
# ... and llama-quantize leaves these as they come (llama-quant.cpp, tensor_allows_quantization).
_NOT_QUANTIZED = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    ".position_embd",
    ".patch_embd",
    ".patch_merger",
)


def _quantizable(tensor: TensorShape) -> bool:
    if tensor.ggml_dims < 2 or not tensor.name.endswith("weight"):
        return False
    return not any(part in tensor.name for part in _NOT_QUANTIZED)


def _converter_type(tensor: TensorShape, file: FileType) -> str:
    """What the converter writes: its BF16 file is what llama-quantize reads."""
    if len(tensor.shape) <= 1 or tensor.name.endswith("_norm.weight") or not tensor.name.endswith(".weight"):
        return "F32"
    if any(part in tensor.name for part in _CONVERTER_F32):
        return "F32"
    return "BF16" if file.is_quantized else file.default


def _explicit(tensor: TensorShape, overrides: Overrides, *, named: bool) -> str | None:
    """The type by ``--token-embedding-type`` or ``--output-tensor-type``, which hold for float files too."""
    # The per-layer table follows the token embeddings unless a --tensor-type names it.
    embedding = tensor.name == EMBEDDINGS[0] or (tensor.name == EMBEDDINGS[1] and not named)
    if embedding and overrides.token_embedding is not None:
        return ggml_type(overrides.token_embedding).name
    if tensor.name == OUTPUT and overrides.output is not None:
        return ggml_type(overrides.output).name
    return None


# A type of larger blocks has a stand-in of 32-value blocks; what does not fit there either becomes F16.
_STAND_IN = {
    **dict.fromkeys((*ONLY_GGML, "IQ4_XS"), "IQ4_NL"),
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "NVFP4": "Q8_0",
}


def _fall_back(choice: Choice, tensor: TensorShape) -> Choice:
    if GGML_TYPES[choice.type].fits(tensor.columns):
        return choice
    stand_in = _STAND_IN.get(choice.type, choice.type)
    if not GGML_TYPES[stand_in].fits(tensor.columns):
        stand_in = "F16"
    return replace(choice, type=stand_in, fallback_from=choice.type)
