"""What was made of pictures holds for the towers that they were shown through.

llama.cpp's tower is a file beside the model's: another one can take its place while the model's file stays,
and what its receipt says of pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.receipt.state import State
from qexport.receipt.verification import OF_IMAGES, Check, Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.types import Artifact

TOWERS = "vision_towers"
"""In an artifact's details: what each tower beside it followed from, as the tower's own entry has it."""
_OTHER = Verdict(Check.IMAGE_TEXT, Status.SKIPPED, "they were shown through another tower than is here now")


def seen_through(artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """The artifacts; pictures count as not shown where a tower beside is another than was there.

    Args:
        artifacts: all that lie together; towers and files belong together by the source.
    """
    return tuple(_honest(each, [a for a in artifacts if _is_beside(a, each)]) for each in artifacts)


def _is_beside(tower: Artifact, artifact: Artifact) -> bool:
    return (
        tower.kind == "mmproj" and artifact.format == "gguf" and tower.source.label == artifact.source.label
    )


def _honest(artifact: Artifact, towers: Sequence[Artifact]) -> Artifact:
    found = artifact.verification
    if found is None or not found.images or all(_same(artifact, tower) for tower in towers):
        return artifact
    kept = tuple(each for each in found.findings if each.check not in OF_IMAGES)
    # A failure that was one of pictures alone is none of what is here.
    said = None if found.said is State.FAILED and found.failures else found.said
    return replace(artifact, verification=replace(found, findings=(*kept, _OTHER), said=said))


def _same(artifact: Artifact, tower: Artifact) -> bool:
    """By what its bytes followed from; by where it was from, in receipts that do not have that yet."""
    known = artifact.details.get(TOWERS)
    if isinstance(known, list):
        return tower.fingerprint in known
    return artifact.source.tower == tower.source.tower
