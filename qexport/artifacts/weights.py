"""From the names in a folder to weights: each with the parts that are stored of it, by canonical name.

``model.language_model.layers.0.mlp.up_proj.weight_packed``, ``.weight_scale`` and ``.weight_global_scale``
together are ``model.layers.0.mlp.up_proj.weight``. Nothing is judged here: what is missing is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qexport.artifacts.forms import Form, decoded, form_of
from qexport.artifacts.rows import Decoded, StoredPart
from qexport.checkpoint.tensors import Checkpoint
from qexport.families.family import Family
from qexport.families.names import canonical_name, is_ignorable

# What follows the module's path, and the name of the part. The longest come first.
_SUFFIXES = (
    (".weight_global_scale", "weight_global_scale"),
    (".input_global_scale", "input_scale"),
    (".weight_scale_inv", "scale_inv"),
    (".weight_scale_2", "weight_scale_2"),
    (".weight_scale", "weight_scale"),
    (".weight_zero_point", "weight_zero_point"),
    (".weight_g_idx", "weight_g_idx"),
    (".weight_shape", "weight_shape"),
    (".weight_packed", "weight_packed"),
    (".pre_quant_scale", "pre_quant_scale"),
    (".global_scale", "global_scale"),
    (".input_scale", "input_scale"),
    (".qweight", "qweight"),
    (".qzeros", "qzeros"),
    (".scales", "scales"),
    (".g_idx", "g_idx"),
    (".biases", "biases"),
    (".weight", "weight"),
)
# Fused experts, which no tool calls ``.weight``.
_FUSED = re.compile(r"(?P<stem>.*\.experts\.(?:gate_up|down)_proj)_scale_inv")
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")
_FUSED_EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)(\.weight)?$")
# Calibrated ranges of the KV cache: part of the runtime's state, not of a weight.
_NOT_WEIGHTS = (".k_scale", ".v_scale", ".k_proj.output_scale", ".v_proj.output_scale")


@dataclass(frozen=True)
class StoredWeight:
    """One weight of a folder.

    Attributes:
        name: canonical, as ``model.layers.0.mlp.experts.3.up_proj.weight``; experts as they are stored.
        module: the path before ``.weight`` in the folder's own spelling.
        parts: what is stored, by the names of :mod:`qexport.artifacts.forms`.
        columns: of the matrix, where the family says.
    """

    name: str
    module: str
    parts: Mapping[str, StoredPart] = field(repr=False)
    columns: int | None = None

    @property
    def form(self) -> Form:
        """How it is stored. Raises InputError where its parts make no sense together."""
        return form_of(self.name, self.parts, self.columns)

    @property
    def bits(self) -> int:
        """Of a code. Raises InputError as :meth:`form` does."""
        return self.form.bits

    def decode(self) -> Decoded:
        """The numbers. Raises InputError as :meth:`form` does."""
        return decoded(self.name, self.parts, self.columns)


def home_of(name: str) -> tuple[str, int | None]:
    """The stacked tensor that a weight belongs to, by canonical names, and which expert it is."""
    if match := _EXPERT.search(name):
        return name.replace(match[0], ".mlp.experts."), int(match[1])
    if match := _FUSED_EXPERTS.search(name):
        part = "gate_proj" if match[1] == "gate_up_proj" else "down_proj"
        return f"{name[: match.start()]}.mlp.experts.{part}.weight", None
    return name, None


def gather(
    checkpoints: Iterable[tuple[Checkpoint, str]],
    columns: Mapping[str, int],
    family: Family,
    words: Mapping[str, str] | None = None,
) -> dict[str, StoredWeight]:
    """Every weight by canonical name.

    Args:
        checkpoints: each with a prefix that its names go without (``mtp.`` of a drafter folder).
        columns: row lengths by canonical name, of those that are known.
        family: whose names they are.
        words: parts that mean something else than their name says, by the config, and what.
    """
    parts: dict[str, dict[str, StoredPart]] = {}
    modules: dict[str, str] = {}
    for checkpoint, prefix in checkpoints:
        for stored, tensor in checkpoint.tensors.items():
            if is_ignorable(stored) or stored.endswith(_NOT_WEIGHTS):
                continue
            module, word, suffix = _split(stored)
            word = (words or {}).get(word, word)
            name = family.own_tower_name(canonical_name(prefix + module + suffix).canonical)
            parts.setdefault(name, {})[word] = StoredPart(checkpoint, tensor)
            modules.setdefault(name, prefix + module)
    return {
        name: StoredWeight(name, modules[name], found, columns.get(name)) for name, found in parts.items()
    }


def _split(stored: str) -> tuple[str, str, str]:
    """Module, part, and what follows the module in the weight's own name."""
    if match := _FUSED.fullmatch(stored):
        return match["stem"], "scale_inv", ""
    for ending, word in _SUFFIXES:
        if stored.endswith(ending):
            return stored.removesuffix(ending), word, ".weight"
    return stored, "weight", ""
