"""Opening the model and the base its MTP head may come from, and diagnosing the pair."""

from __future__ import annotations

from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import Diagnosis, diagnose
from qexport.doctor.mlx_saved import underneath
from qexport.doctor.subject import stored_head
from qexport.onepass.sources import Sources, paths_in
from qexport.recipe.recipe import ModelChoice


def examine(choice: ModelChoice, *, download: bool) -> Diagnosis:
    """Open and diagnose. With ``download`` a model on the Hub is fetched first; without, headers suffice.

    Of a base on the Hub only the shards with its MTP head are fetched.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: as checkpoint and doctor say.
    """
    checkpoint = open_checkpoint(choice.model, revision=choice.revision)
    if download and isinstance(checkpoint, HubCheckpoint):
        checkpoint = checkpoint.download()
    base = None
    if choice.mtp_from is not None:
        base = open_checkpoint(choice.mtp_from, revision=choice.mtp_from_revision)
        if download and isinstance(base, HubCheckpoint) and choice.mtp != "drop":
            base.fetch(stored_head(base))
    return diagnose(checkpoint, mtp=choice.mtp, mtp_from=base)


def fetched(choice: ModelChoice, diagnosis: Diagnosis) -> Diagnosis:
    """The same diagnosis with all data at hand: what is on the Hub is downloaded now, and looked at again."""
    on_hub = isinstance(underneath(diagnosis.subject.checkpoint), HubCheckpoint)
    base = diagnosis.subject.base
    return examine(choice, download=True) if on_hub or isinstance(base, HubCheckpoint) else diagnosis


def sources_of(diagnosis: Diagnosis, *given: object) -> Sources:
    """What is read: the model, the base, and every file that is named in ``given``, values of options."""
    model, base = diagnosis.subject.checkpoint, diagnosis.subject.base
    return Sources((model,) if base is None else (model, base), tuple(paths_in(given)))
