"""llama-quantize's recipes: which tensors of a Q4_K_M file are not Q4_K, and the like.

The rules are those of ``llama_tensor_get_type_impl`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp. tests/gguf/test_mixture.py compares
with what it answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from qexport.codecs.ggml_types import GGML_TYPES, ggml_type
from qexport.errors import InputError
from qexport.formats.gguf.file_types import FileType
from qexport.formats.gguf.mixture_terms import (
    EMBEDDINGS,
    OUTPUT,
    Choice,
    MixtureModel,
    Overrides,
    Reason,
    TensorShape,
)

_BELOW_3_BITS = frozenset(("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"))
_MLP = re.compile(r"^blk\.\d+\.ffn_(gate|up|down)(_exps|_shexp)?\.weight$")


def is_tied(tensors: Sequence[TensorShape]) -> bool:
    return all(tensor.name != OUTPUT for tensor in tensors)


def _is_attn_v(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def count_attn_v(tensors: Sequence[TensorShape]) -> int:
    return sum(_is_attn_v(tensor.name) for tensor in tensors)


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth of the layers and every third one between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


@dataclass
class Walk:
    """One walk over the tensors; counts ``attn_v``-like and feed-forward tensors on the way."""

    file: FileType
    model: MixtureModel
    has_imatrix: bool
    overrides: Overrides
    tied: bool
    attn_v_count: int
    attn_v_seen: int = field(default=0, init=False)
    ffn_seen: Counter[str] = field(default_factory=Counter, init=False)

    def choose(self, tensor: TensorShape) -> Choice:
        name = tensor.name
        if self.file.name in ("MXFP4_MOE", "NVFP4"):
            return self._four_bit_floats(tensor)
        special: str | None = None
        if name == OUTPUT or (self.tied and name in EMBEDDINGS):
            if self.overrides.output is not None:
                return Choice(ggml_type(self.overrides.output).name, Reason.OVERRIDE)
            special = self._output(tensor)
        elif name in EMBEDDINGS:
            special = self._embedding()
        elif self.file.name in _BELOW_3_BITS:
            special = self._below_3_bits(name)
        elif _is_attn_v(name):
            special = self._attn_v()
            self.attn_v_seen += 1
        elif "attn_k.weight" in name:
            special = "Q8_0" if self.model.experts == 8 else self._attn_q_or_k()
        elif "attn_q.weight" in name:
            special = self._attn_q_or_k()
        elif "attn_output.weight" in name:
            special = self._attn_output()
        elif part := next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), None):
            layer = self._layer(tensor, self.ffn_seen[part])
            special = self._ffn_down(layer) if part == "ffn_down" else self._ffn_up_or_gate(layer)
            self.ffn_seen[part] += 1
        if special is None or special == self.file.default:
            return Choice(self.file.default, Reason.DEFAULT)
        return Choice(special, Reason.MIXTURE)

    def _four_bit_floats(self, tensor: TensorShape) -> Choice:
        """Experts (MXFP4), or all MLPs of the trunk (NVFP4, as in our folders), and Q8_0 for what is not."""
        output = tensor.name == OUTPUT or (self.tied and tensor.name in EMBEDDINGS)
        if output and self.overrides.output is not None:
            return Choice(ggml_type(self.overrides.output).name, Reason.OVERRIDE)
        if self.file.default == "MXFP4":
            inside = tensor.ggml_dims > 2
        else:
            inside = tensor.block < self.model.trunk_layers and _MLP.search(tensor.name) is not None
        return Choice(self.file.default, Reason.DEFAULT) if inside else Choice("Q8_0", Reason.MIXTURE)

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
        if self.file.name in _BELOW_3_BITS or self.file.name == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if self.file.default == "Q8_0" else "Q6_K"

    def _embedding(self) -> str | None:
        if self.file.name in ("IQ3_XXS", "IQ2_M", "IQ2_S"):
            return "IQ3_S"
        return "Q2_K" if self.file.name in _BELOW_3_BITS else None

    def _below_3_bits(self, name: str) -> str | None:
        experts, raised = self.model.experts, "IQ3_S" if self.file.name in ("IQ2_M", "IQ2_S") else "Q2_K"
        if _is_attn_v(name):
            return "Q4_K" if self.model.gqa >= 4 or experts >= 4 else raised
        if "attn_k.weight" in name:
            return "Q4_K" if experts == 8 else None
        if "attn_output.weight" in name:
            if experts == 8:
                return "Q5_K"
            return {"IQ1_M": "IQ2_XXS", "IQ1_S": "IQ2_XXS", "IQ2_M": raised, "IQ2_S": raised}.get(
                self.file.name
            )
        if "ffn_down" in name:
            self.ffn_seen["ffn_down"] += 1
            return raised if self.ffn_seen["ffn_down"] <= self.model.layers // 8 else None
        return None

    def _attn_q_or_k(self) -> str | None:
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.file.name)

    def _ffn_up_or_gate(self, layer: int) -> str | None:
        layers = self.model.layers
        inner = layers // 8 <= layer < 7 * layers // 8
        return "IQ3_XXS" if self.file.name == "IQ3_XS" and inner else None

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
            case "IQ3_XXS" | "IQ3_XS" | "IQ3_S" if grouped:
                chosen = "Q4_K"
            case "IQ3_XXS" if not self.has_imatrix:
                chosen = "IQ3_S"
            case "IQ3_M":
                chosen = "Q4_K"
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
            return "Q5_K" if self.file.name in raised or self.file.name.startswith("IQ3") else None
        raised_to = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_XXS": "IQ3_S", "IQ3_M": "Q4_K"}
        return raised_to.get(self.file.name)

    def _ffn_down(self, layer: int) -> str | None:
        layers, first_eighth = self.model.layers, layer < self.model.layers // 8
        match self.file.name:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if first_eighth:
                return "Q4_K"
            case "IQ3_XXS" if not self.has_imatrix:
                return "Q4_K" if first_eighth else "Q3_K"
            case "IQ3_M" if first_eighth or (self.model.experts == 8 and _more_bits(layer, layers)):
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
