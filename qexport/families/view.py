"""The model view: a repaired checkpoint under canonical names, each tensor with its role.

Canonical names are the text-only spelling of Hugging Face (``model.layers.0.self_attn.q_proj.weight``,
``lm_head.weight``); an MTP head's are the family's published ones. Experts are always three stacked tensors
per layer (``mlp.experts.gate_proj.weight`` of shape ``[experts, intermediate, hidden]`` and so on), however
the checkpoint stores them: a :class:`~qexport.checkpoint.tensors.LogicalTensor` says where their rows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qexport.checkpoint.tensors import LogicalTensor
from qexport.errors import InputError, UsageProblem
from qexport.families.hyper import Hyper, resolve
from qexport.families.known import FAMILIES
from qexport.families.roles import Block, Role
from qexport.families.vision import VisionHyper


@dataclass(frozen=True)
class ModelTensor:
    """One canonical tensor: what it is (``role``), where it sits, and where its rows are.

    ``layer`` counts inside its block: trunk layers from 0, MTP layers from 0 again, ``None`` elsewhere.
    """

    data: LogicalTensor
    role: Role
    block: Block
    layer: int | None = None

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


@dataclass(frozen=True)
class ModelView:
    """Everything a format needs to know about a model, with no tensor data read.

    Attributes:
        family: the family's name as in ``qexport.families.known``, e.g. ``qwen3_5_moe``.
        label: what the model is called in messages (folder name or repo id).
        config: the repaired ``config.json``.
        text: the language model's hyper-parameters (``text_config`` where there is one, else ``config``).
        tensors: every tensor, in model order (embedding, layers, final norm, head, MTP, vision).
        layers: number of trunk layers.
        mtp_layers: number of MTP layers that the files hold (0 or 1).
        files: small files by name (tokenizer, templates, generation config) after repairs.
        resolved: the hyper-parameters, where they have been resolved before.
        vision: those of the vision tower; ``None`` where there is none.
    """

    family: str
    label: str
    config: Mapping[str, Any]
    text: Mapping[str, Any]
    tensors: tuple[ModelTensor, ...]
    layers: int
    mtp_layers: int
    files: Mapping[str, bytes] = field(default_factory=dict)
    resolved: Hyper | None = field(default=None, repr=False, compare=False)
    vision: VisionHyper | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[ModelTensor]:
        return iter(self.tensors)

    def find(self, role: Role, *, layer: int | None = None, block: Block | None = None) -> ModelTensor | None:
        """The first tensor with this role (and layer, and block), or ``None``."""
        for tensor in self.tensors:
            same_layer = layer is None or tensor.layer == layer
            if tensor.role is role and same_layer and (block is None or tensor.block is block):
                return tensor
        return None

    @cached_property
    def hyper(self) -> Hyper:
        """The hyper-parameters with nothing left to guess."""
        return self.resolved or resolve(FAMILIES[self.family], self.text, self.config)

    @property
    def wide(self) -> bool:
        """Whether the model is stored in float32."""
        embedding = self.find(Role.TOKEN_EMBD)
        return embedding is not None and embedding.data.dtype == "F32"

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.data.numel for tensor in self.tensors)


def needs_head(view: ModelView) -> None:
    """Refuse a model that has no MTP head.

    Raises:
        InputError: it has none.
        UsageProblem: nor has any of its family.
    """
    if FAMILIES[view.family].head is None:
        raise UsageProblem(f"the family {view.family} has no MTP head: there is nothing to draft with")
    if not view.mtp_layers:
        raise InputError(f"{view.label} has no MTP head", hint="`--mtp-from BASE` takes the base model's.")
