"""The gate: what may be published, and what the card has to say about it.

Nothing counts as exported until it has been run. What failed, or was never run, is refused unless the user
insists, and then the card says it at its top. A repository is made public only when everything in it passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import VerificationError
from qexport.publish.artifacts import Proof

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.publish.artifacts import Artifact

__all__ = ["check_proofs", "unproven"]


def unproven(artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """The artifacts that failed verification or were not verified."""
    return tuple(a for a in artifacts if a.proof in (Proof.FAILED, Proof.MISSING))


def check_proofs(artifacts: Iterable[Artifact], *, allow_unverified: bool, public: bool) -> None:
    """Refuse what has not passed.

    Args:
        allow_unverified: push it all the same; the card will say so.
        public: the repository is to be made public, for which everything must have passed.

    Raises:
        VerificationError: something has not passed; names each with its verdict.
    """
    open_ = unproven(artifacts)
    if not open_ or (allow_unverified and not public):
        return
    lines = "\n".join(f"  {a.label} ({a.files[0].name}): {a.verdict}" for a in open_)
    if public and allow_unverified:
        raise VerificationError(
            f"A repository is made public only when all of it passed verification:\n{lines}",
            hint="Push it private (leave --public out), or verify these first.",
        )
    raise VerificationError(
        f"Not pushed, since this has not passed verification:\n{lines}",
        hint="Export again with verification, choose others with --only LABEL, or push them marked as "
        "unverified with --allow-unverified.",
    )
