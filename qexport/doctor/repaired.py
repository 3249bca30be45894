"""The checkpoint after repairs: what every export starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qexport.checkpoint.tensors import Checkpoint, LogicalTensor
from qexport.doctor.draft import Draft, SmallFiles
from qexport.doctor.mtp import MtpResult
from qexport.families.build import build_view
from qexport.families.family import Family
from qexport.families.hyper import Hyper, resolve
from qexport.families.view import ModelView


@dataclass(frozen=True)
class Repaired:
    """A repaired checkpoint; its tensors still lie where they were.

    Attributes:
        label: the source's name.
        config: ``config.json`` as it will be written.
        hyper: the language model's hyper-parameters, with nothing left to guess.
        tensors: by canonical name; experts in the layout of the source's trunk.
        files: every small file that goes with the weights; untouched ones are the source's bytes.
        mtp_layers: MTP layers among ``tensors``.
        mtp_origin, vision_origin: ``own``, ``none``, ``dropped`` or ``grafted from <label>``.
        wrapper: whether it has the multimodal form, names included.
    """

    label: str
    family: Family
    config: Mapping[str, Any]
    hyper: Hyper
    tensors: Mapping[str, LogicalTensor]
    files: SmallFiles = field(repr=False)
    mtp_layers: int
    mtp_origin: str
    vision_origin: str
    wrapper: bool
    source: Checkpoint = field(repr=False)

    @property
    def text(self) -> Mapping[str, Any]:
        """``hyper`` as transformers spells it."""
        return self.hyper.text

    def view(self) -> ModelView:
        """The model view.

        Raises:
            InputError: tensors and config do not fit together.
        """
        return self._view

    @cached_property
    def _view(self) -> ModelView:
        return build_view(
            self.hyper,
            label=self.label,
            config=self.config,
            tensors=self.tensors,
            mtp_layers=self.mtp_layers,
            files=self.files,
        )


def finish(draft: Draft, mtp: MtpResult, vision: str, repaired: Mapping[str, str]) -> Repaired:
    """The draft as a value; ``repaired`` says which quirk wrote which key of the config."""
    subject = draft.subject
    return Repaired(
        label=subject.checkpoint.label,
        family=subject.family,
        config=draft.config,
        hyper=resolve(subject.family, draft.text, draft.config, repaired=repaired),
        tensors=draft.tensors,
        files=draft.files(),
        mtp_layers=mtp.layers,
        mtp_origin=mtp.origin,
        vision_origin=vision,
        wrapper=subject.wants_wrapper,
        source=subject.checkpoint,
    )
