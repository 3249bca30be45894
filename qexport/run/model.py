"""Opening the model and the bases its MTP head and its vision tower may come from, and diagnosing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.checkpoint.tensors import Checkpoint
from qexport.doctor.diagnose import Diagnosis, diagnose
from qexport.doctor.turned import underneath
from qexport.onepass.sources import Sources, paths_in
from qexport.recipe.choice import ModelChoice, Place


class Openings:
    """Opens each model once, whoever asks for it: recipes of one family have their bases in common.

    Attributes:
        asked: how often something was asked for.
    """

    def __init__(self) -> None:
        self._known: dict[Place, Checkpoint] = {}
        self.asked = 0

    def __call__(self, model: str, *, revision: str | None = None) -> Checkpoint:
        self.asked += 1
        place = (model, revision)
        if place not in self._known:
            self._known[place] = open_checkpoint(model, revision=revision)
        return self._known[place]

    @property
    def opened(self) -> int:
        """How many models were opened."""
        return len(self._known)


def examine(
    choice: ModelChoice, *, download: bool, opened: Callable[..., Checkpoint] = open_checkpoint
) -> Diagnosis:
    """Open and diagnose. With ``download`` a model on the Hub is fetched first; without, headers suffice.

    Of a base on the Hub only the shards with what is taken of it are fetched.

    Args:
        opened: opens models; see :class:`Openings`.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: as checkpoint and doctor say.
    """
    checkpoint = opened(choice.model, revision=choice.revision)
    if download and isinstance(checkpoint, HubCheckpoint):
        checkpoint = checkpoint.download()
    places = (choice.head_base, choice.tower_base)
    bases = {place: opened(place[0], revision=place[1]) for place in places if place is not None}
    head, tower = (None if place is None else bases[place] for place in places)
    diagnosis = diagnose(
        checkpoint,
        mtp=choice.mtp,
        mtp_from=head,
        vision=choice.vision,
        vision_from=tower,
        vision_named=choice.tower_named,
    )
    for base, names in taken(diagnosis) if download else ():
        base.fetch(names)
    return diagnosis


def taken(diagnosis: Diagnosis) -> Iterator[tuple[HubCheckpoint, set[str]]]:
    """Bases on the Hub, and the tensors that are taken of each."""
    if diagnosis.errors:
        return
    pieces = [piece for tensor in diagnosis.repaired.tensors.values() for piece in tensor.pieces]
    for base in bases_of(diagnosis):
        if isinstance(base, HubCheckpoint):
            yield base, {piece.name for piece in pieces if underneath(piece.checkpoint) is base}


def bases_of(diagnosis: Diagnosis) -> list[Checkpoint]:
    """What was opened to take something of it, each once."""
    given = (diagnosis.subject.base, diagnosis.subject.sight)
    return list({id(base): base for base in given if base is not None}.values())


def fetched(choice: ModelChoice, diagnosis: Diagnosis) -> Diagnosis:
    """The same diagnosis with all data at hand: what is on the Hub is downloaded now, and looked at again."""
    away = is_away(diagnosis) or any(isinstance(base, HubCheckpoint) for base in bases_of(diagnosis))
    return examine(choice, download=True) if away else diagnosis


def is_away(diagnosis: Diagnosis) -> bool:
    """Whether the model's weights are on the Hub alone."""
    return isinstance(underneath(diagnosis.subject.checkpoint), HubCheckpoint)


def sources_of(diagnosis: Diagnosis, *given: object) -> Sources:
    """What is read: the model, its bases, and every file that is named in ``given``, values of options."""
    return Sources((diagnosis.subject.checkpoint, *bases_of(diagnosis)), tuple(paths_in(given)))
