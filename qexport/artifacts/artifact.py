"""An artifact that was opened: what is stored in it, and the model view of what it stands for.

The view has canonical names and Hugging Face's conventions, whatever the format did to a tensor, and its data
is decoded as it is read. So everything that takes a source's view (the layer-streamed pass, comparisons,
another export) takes an artifact's as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qexport.artifacts.layout import ArtifactLayout
from qexport.artifacts.rows import Decoded, DecodedCheckpoint
from qexport.checkpoint.tensors import LogicalTensor
from qexport.families.build import build_view, expected_tensors, template_shape
from qexport.families.family import Family
from qexport.families.hyper import resolve
from qexport.families.view import ModelTensor, ModelView
from qexport.families.vision import VisionHyper


class AnyWeight(Protocol):
    """One weight as it is stored."""

    @property
    def name(self) -> str:
        """Canonical; of a tensor that the family does not have, its own."""
        ...

    @property
    def bits(self) -> int:
        """Whole bits of a stored number, 4 of 4.5. Raises InputError as :meth:`decode`."""
        ...

    def decode(self) -> Decoded:
        """The numbers, in the family's own order and conventions. Raises InputError if it cannot be."""
        ...


@dataclass(frozen=True)
class Opened:
    """What was found.

    Attributes:
        label: the file's or the folder's name.
        config: ``config.json`` as it is; of a GGUF, that of the model it is compared with.
        text: the language model's hyper-parameters with nothing left to guess.
        weights: by canonical name, as they are stored: experts one by one, fused, or stacked.
        files: small files by name.
        declared_mtp: MTP layers that its config or metadata promises.
        details: of one layout: the quantization that a folder declares.
    """

    label: str
    layout: ArtifactLayout
    family: Family
    config: Mapping[str, Any] = field(repr=False)
    text: Mapping[str, Any] = field(repr=False)
    weights: Mapping[str, AnyWeight] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    declared_mtp: int = 0
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def has_head(self) -> bool:
        """Whether any tensor of an MTP head is there."""
        return bool(self.family.head_names(self.weights, self.text))

    def view(self) -> ModelView:
        """The model that this artifact stands for, decoded as it is read.

        Raises:
            InputError: weights are missing, unknown, or stored in a form that makes no sense.
        """
        decoded = {name: weight.decode() for name, weight in self.weights.items()}
        return build_view(
            resolve(self.family, self.text),
            label=self.label,
            config=self.config,
            tensors=DecodedCheckpoint(self.label, decoded).logical(),
            mtp_layers=int(self.has_head),
            files=self.files,
        )


def skeleton(
    family: Family,
    text: Mapping[str, Any],
    mtp_layers: int,
    label: str,
    vision: VisionHyper | None = None,
) -> ModelView:
    """The view that a model of these hyper-parameters has, with no data behind it, optional tensors included.

    Raises:
        InputError: sizes are missing.
    """
    hyper = resolve(family, text)
    dims = hyper.dims if vision is None else {**hyper.dims, **vision.dims}
    tensors: list[ModelTensor] = []
    for prefix, template, block, layer in expected_tensors(hyper, mtp_layers, vision):
        name = prefix + template.name
        shape = template_shape(template, dims, name)
        tensors.append(ModelTensor(LogicalTensor(name, shape, "F32", ()), template.role, block, layer))
    return ModelView(
        family.name, label, text, hyper.text, tuple(tensors), hyper.layers, mtp_layers, resolved=hyper
    )
