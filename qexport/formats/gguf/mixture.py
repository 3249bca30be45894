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

Left out: IQ1-IQ3, ternary and MXFP4 files, ``--pure``, ``--prune-layers``, the special rules of Falcon and
GLM5-next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qexport.codecs.ggml_types import GGML_TYPES, ggml_type
from qexport.errors import InputError, UsageProblem

__all__ = [
    "FILE_TYPES",
    "MTP_FLOOR",
    "Choice",
    "FileType",
    "MixtureModel",
    "Overrides",
    "Reason",
    "TensorShape",
    "choose_types",
    "file_type",
    "protect_mtp",
    "requires_importance",
    "walk_order",
]

MTP_FLOOR = "Q6_K"


@dataclass(frozen=True)
class FileType:
    """A name for ``-q``: the number that goes into ``general.file_type`` and the type most tensors get."""

    name: str
    id: int
    default: str

    @property
    def is_quantized(self) -> bool:
        return GGML_TYPES[self.default].is_quantized


# Numbers: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h (enum llama_ftype)
FILE_TYPES: Mapping[str, FileType] = {
    row.name: row
    for row in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q2_K_S", 21, "Q2_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
    )
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def file_type(name: str) -> FileType:
    """The file type called ``name`` (any case, aliases resolved); UsageProblem lists the known names."""
    upper = name.upper()
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        known = ", ".join([*FILE_TYPES, *_ALIASES])
        raise UsageProblem(f"unknown GGUF type {name!r}", hint=f"known types: {known}")
    return found


@dataclass(frozen=True)
class TensorShape:
    """A tensor as it stands in the GGUF: name, shape in torch order (rows first)."""

    name: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def ggml_dims(self) -> int:
        """Dimensions as ggml counts them: outer ones of size 1 do not count, a vector has one."""
        outer = next((i for i, size in enumerate(self.shape) if size > 1), len(self.shape) - 1)
        return max(1, len(self.shape) - outer)

    @property
    def block(self) -> int:
        """The number in ``blk.N.``, or -1."""
        match = re.match(r"blk\.(\d+)", self.name)
        return int(match[1]) if match else -1


@dataclass(frozen=True)
class MixtureModel:
    """The hyper-parameters that decide, as the GGUF metadata has them.

    ``layers`` is ``block_count``, the MTP blocks included; ``heads`` and ``kv_heads`` may be one number or
    one per layer.
    """

    arch: str
    layers: int
    heads: int | Sequence[int]
    kv_heads: int | Sequence[int] | None = None
    experts: int = 0
    mtp_layers: int = 0

    @property
    def trunk_layers(self) -> int:
        return self.layers - self.mtp_layers

    @property
    def gqa(self) -> int:
        """Query heads per KV head of layer 0, 0 where layer 0 has none: that is the layer llama.cpp asks."""
        heads, kv_heads = self._first_heads
        return heads // kv_heads if kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for LLM_TYPE_70B (src/models/{llama,qwen2,deci,olmo,jais2}.cpp)."""
        if self.arch == "llama":
            heads, kv_heads = self._first_heads
            return self.trunk_layers == 80 and self.experts != 8 and heads != kv_heads
        return self.trunk_layers == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.arch)

    @property
    def _first_heads(self) -> tuple[int, int]:
        heads = self.heads if isinstance(self.heads, int) else self.heads[0]
        if self.kv_heads is None:
            return heads, heads
        return heads, self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[0]


@dataclass(frozen=True)
class Overrides:
    """What the user asked for by name.

    ``tensor_types`` are (pattern, type) pairs, searched in order, the first match wins. As in llama-quantize
    patterns are lower-cased, apply to quantized file types only, and a tensor that one of them names does not
    count when the mixture counts layers.
    """

    tensor_types: Sequence[tuple[str, str]] = ()
    output: str | None = None
    token_embedding: str | None = None

    def __post_init__(self) -> None:
        for pattern, type_name in self.tensor_types:
            ggml_type(type_name)
            _compile(pattern)
        for name in (self.output, self.token_embedding):
            if name is not None:
                ggml_type(name)


class Reason(StrEnum):
    """Why a tensor got its type."""

    KEPT = "kept"  # never quantized: vectors, norms, routers, convolutions
    DEFAULT = "default"  # the type that the file is named after
    MIXTURE = "mixture"  # a rule of the recipe
    OVERRIDE = "override"  # --tensor-type, --output-tensor-type, --token-embedding-type
    MTP = "mtp"  # our floor for the MTP block, or --mtp-type


@dataclass(frozen=True)
class Choice:
    """The type of one tensor; ``fallback_from`` is the type it would have if its rows were whole blocks."""

    type: str
    reason: Reason
    fallback_from: str | None = None


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
    patterns = [(_compile(pattern), ggml_type(t).name) for pattern, t in wanted.tensor_types]
    walk = _Walk(file, model, has_imatrix, wanted, _tied(tensors), _count_attn_v(tensors))
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


def requires_importance(tensor: str, type_name: str, file: str) -> bool:
    """Whether llama-quantize refuses this tensor without importance data: Q2_K inside a Q2_K_S file."""
    return type_name == "Q2_K" and file_type(file).name == "Q2_K_S" and tensor not in (*_EMBEDDINGS, _OUTPUT)


# --- never quantized ----------------------------------------------------------------------------------------

_OUTPUT = "output.weight"
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
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


# --- overrides and widths -----------------------------------------------------------------------------------

# llama-quantize compiles patterns with std::regex (ECMAScript). Python's syntax contains what is used in
# practice, but for POSIX classes.
_POSIX = {"[:digit:]": "0-9", "[:alpha:]": "a-zA-Z", "[:alnum:]": "a-zA-Z0-9", "[:lower:]": "a-z"}


def _compile(pattern: str) -> re.Pattern[str]:
    lowered = pattern.lower()
    for posix, plain in _POSIX.items():
        lowered = lowered.replace(posix, plain)
    try:
        return re.compile(lowered)
    except re.error as error:
        raise UsageProblem(
            f"{pattern!r} is not a regular expression: {error}",
            hint=r"write a pattern that is searched in tensor names, such as 'blk\.[0-3]\.ffn_down'",
        ) from None


def _explicit(tensor: TensorShape, overrides: Overrides, *, named: bool) -> str | None:
    """The type by ``--token-embedding-type`` or ``--output-tensor-type``, which hold for float files too."""
    # The per-layer table follows the token embeddings unless a --tensor-type names it.
    embedding = tensor.name == _EMBEDDINGS[0] or (tensor.name == _EMBEDDINGS[1] and not named)
    if embedding and overrides.token_embedding is not None:
        return ggml_type(overrides.token_embedding).name
    if tensor.name == _OUTPUT and overrides.output is not None:
        return ggml_type(overrides.output).name
    return None


# A type of 256-value blocks has a stand-in of 32-value blocks; what does not fit there either becomes F16.
_STAND_IN = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def _fall_back(choice: Choice, tensor: TensorShape) -> Choice:
    if GGML_TYPES[choice.type].fits(tensor.columns):
        return choice
    stand_in = _STAND_IN.get(choice.type, choice.type)
    if not GGML_TYPES[stand_in].fits(tensor.columns):
        stand_in = "F16"
    return replace(choice, type=stand_in, fallback_from=choice.type)


# --- the recipe ---------------------------------------------------------------------------------------------


def _tied(tensors: Sequence[TensorShape]) -> bool:
    return all(tensor.name != _OUTPUT for tensor in tensors)


def _is_attn_v(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def _count_attn_v(tensors: Sequence[TensorShape]) -> int:
    return sum(_is_attn_v(tensor.name) for tensor in tensors)


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth of the layers and every third one between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


@dataclass
class _Walk:
    """One walk over the tensors; counts ``attn_v``-like and ``ffn_down`` tensors on the way."""

    file: FileType
    model: MixtureModel
    has_imatrix: bool
    overrides: Overrides
    tied: bool
    attn_v_count: int
    attn_v_seen: int = field(default=0, init=False)
    ffn_down_seen: int = field(default=0, init=False)

    def choose(self, tensor: TensorShape) -> Choice:
        name = tensor.name
        special: str | None = None
        if name == _OUTPUT or (self.tied and name in _EMBEDDINGS):
            if self.overrides.output is not None:
                return Choice(ggml_type(self.overrides.output).name, Reason.OVERRIDE)
            special = self._output(tensor)
        elif name in _EMBEDDINGS:
            pass
        elif _is_attn_v(name):
            special = self._attn_v()
            self.attn_v_seen += 1
        elif "attn_k.weight" in name:
            special = "Q8_0" if self.model.experts == 8 else None
        elif "attn_q.weight" in name:
            pass
        elif "attn_output.weight" in name:
            special = self._attn_output()
        elif "ffn_up" in name or "ffn_gate" in name:
            self._layer(tensor, 0)
        elif "ffn_down" in name:
            special = self._ffn_down(self._layer(tensor, self.ffn_down_seen))
            self.ffn_down_seen += 1
        if special is None or special == self.file.default:
            return Choice(self.file.default, Reason.DEFAULT)
        return Choice(special, Reason.MIXTURE)

    def _layer(self, tensor: TensorShape, seen: int) -> int:
        """Layer of a feed-forward tensor: the count so far, or the name's number where there are experts."""
        if self.model.experts <= 1:
            return seen
        if not 0 <= tensor.block < self.model.layers:
            raise InputError(f"{tensor.name}: an expert model needs a layer below {self.model.layers} here")
        return tensor.block

    def _output(self, tensor: TensorShape) -> str:
        if not GGML_TYPES[self.file.default].fits(tensor.columns):
            return "Q8_0"
        return "Q8_0" if self.file.default == "Q8_0" else "Q6_K"

    def _attn_v(self) -> str | None:
        index, grouped = self.attn_v_seen, self.model.gqa >= 4
        chosen: str | None = None
        match self.file.name:
            case "Q2_K":
                chosen = "Q4_K" if grouped else "Q3_K"
            case "Q2_K_S" if grouped:
                chosen = "Q4_K"
            case "Q3_K_M":
                chosen = "Q5_K" if index < 2 else "Q4_K"
            case "Q3_K_L":
                chosen = "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if grouped:
                chosen = "Q5_K"
            case "Q4_K_S" if index < 4:
                chosen = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(index, self.attn_v_count):
                chosen = "Q6_K"
        # attn_v is an eighth of attn_q in a 70B model, and tiny next to the experts of an 8-expert one
        if self.model.is_70b and (chosen or self.file.default) in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if self.model.experts == 8 else chosen

    def _attn_output(self) -> str | None:
        if self.model.experts == 8:
            raised = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return "Q5_K" if self.file.name in raised else None
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.file.name)

    def _ffn_down(self, layer: int) -> str | None:
        layers, first_eighth = self.model.layers, layer < self.model.layers // 8
        match self.file.name:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if first_eighth:
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if layer < layers // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_S" if first_eighth:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, layers):
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if first_eighth and not self.has_imatrix:
                return "Q5_K"
            # Q4_0 and Q5_0 with importance can go astray in the first layers; the offset variant does not
            case "Q4_0" if first_eighth and self.has_imatrix:
                return "Q4_1"
            case "Q5_0" if first_eighth and self.has_imatrix:
                return "Q5_1"
        return None
