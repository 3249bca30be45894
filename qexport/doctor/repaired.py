"""The checkpoint after repairs: what every export starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.checkpoint.tensors import Checkpoint, LogicalTensor
from qexport.doctor.draft import Draft, SmallFiles
from qexport.doctor.mtp import MtpResult
from qexport.doctor.rope import complete_rope, rope_parameters
from qexport.families.build import build_view
from qexport.families.table import Family
from qexport.families.view import ModelView

__all__ = ["Repaired", "finish", "whole_text"]


@dataclass(frozen=True)
class Repaired:
    """A repaired checkpoint; its tensors still lie where they were.

    Attributes:
        label: the source's name.
        config: ``config.json`` as it will be written.
        text: the language model's hyper-parameters with nothing left to guess: those of ``config``, the
            family's defaults where it is silent, RoPE in both spellings, ``tie_word_embeddings`` always.
        tensors: by canonical name; experts in the layout of the source's trunk.
        files: every small file that goes with the weights; untouched ones are the source's bytes.
        mtp_layers: MTP layers among ``tensors``.
        mtp_origin: ``own``, ``none``, ``dropped`` or ``grafted from <label>``.
        wrapper: whether it has the multimodal form, names included.
    """

    label: str
    family: Family
    config: Mapping[str, Any]
    text: Mapping[str, Any]
    tensors: Mapping[str, LogicalTensor]
    files: SmallFiles = field(repr=False)
    mtp_layers: int
    mtp_origin: str
    wrapper: bool
    source: Checkpoint = field(repr=False)

    def view(self) -> ModelView:
        """The model view.

        Raises:
            InputError: tensors and config do not fit together.
        """
        return build_view(
            self.family,
            label=self.label,
            config=self.config,
            text=self.text,
            tensors=self.tensors,
            mtp_layers=self.mtp_layers,
            files=self.files,
        )


def finish(draft: Draft, mtp: MtpResult) -> Repaired:
    """The draft as a value."""
    subject = draft.subject
    return Repaired(
        label=subject.checkpoint.label,
        family=subject.family,
        config=draft.config,
        text=whole_text(subject.family, draft.config, draft.text),
        tensors=draft.tensors,
        files=draft.files(),
        mtp_layers=mtp.layers,
        mtp_origin=mtp.origin,
        wrapper=subject.wants_wrapper,
        source=subject.checkpoint,
    )


def whole_text(family: Family, config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's hyper-parameters with nothing left to guess (see :attr:`Repaired.text`).

    Args:
        config: the whole ``config.json``, for what only its root says.
        text: the language model's part of it.
    """
    given = {key: value for key, value in text.items() if value is not None}
    whole = {**text, **family.defaults, **given}
    # All readers take 10000 where a plain transformer's config is silent.
    whole |= complete_rope(
        family, {"rope_theta": 10000.0, **whole} if not rope_parameters(family, whole) else whole
    )
    flag = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    whole["tie_word_embeddings"] = (
        bool(family.defaults.get("tie_word_embeddings")) if flag is None else bool(flag)
    )
    return whole
