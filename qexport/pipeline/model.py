"""Opening the model and the base its MTP head may come from, and diagnosing the pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import Diagnosis, diagnose

if TYPE_CHECKING:
    from qexport.checkpoint.tensors import Checkpoint
    from qexport.doctor.mtp import MtpMode

__all__ = ["ModelChoice", "examine"]


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and what becomes of its MTP head.

    Attributes:
        model: a folder or a Hub id; ``revision`` only for the latter.
        mtp: ``auto``, ``keep``, ``graft`` or ``drop``.
        mtp_from: the base whose head is grafted: a folder or a Hub id.
    """

    model: str
    revision: str | None = None
    mtp: MtpMode = "auto"
    mtp_from: str | None = None
    mtp_from_revision: str | None = None


def examine(choice: ModelChoice, *, download: bool) -> Diagnosis:
    """Open and diagnose. With ``download`` a model on the Hub is fetched first; without, headers suffice.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: as checkpoint and doctor say.
    """
    checkpoint = _open(choice.model, choice.revision, download=download)
    base = None
    if choice.mtp_from is not None:
        base = _open(choice.mtp_from, choice.mtp_from_revision, download=download)
    return diagnose(checkpoint, mtp=choice.mtp, mtp_from=base)


def _open(spec: str, revision: str | None, *, download: bool) -> Checkpoint:
    from qexport.checkpoint.hub import HubCheckpoint

    checkpoint = open_checkpoint(spec, revision=revision)
    if download and isinstance(checkpoint, HubCheckpoint):
        return checkpoint.download()
    return checkpoint
