"""The gate: what may be published, and what the card has to say about it.

Nothing counts as exported until it has been run and compared. What failed, was never run, or ran and was not
compared, is refused unless the user insists, and then the card says it at its top. A repository is made
public only when everything in it passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError, UsageProblem, some
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.safe_text import LABEL
from qexport.receipt.state import State, problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.publishing.plan import PushOptions
    from qexport.receipt.types import Artifact


_FOR_ALL = frozenset({"mtp", "mmproj"})


def check_labels(artifacts: Iterable[Artifact]) -> None:
    """What is published has a label and a kind that can stand in tags and commands as they are.

    Raises:
        InputError: one has not.
    """
    for artifact in artifacts:
        for word in (artifact.label, artifact.kind):
            if not LABEL.fullmatch(word):
                raise InputError(
                    f"{RECEIPT_NAME} cannot be used: {word[:60]!r} is no label of an artifact.",
                    hint="Export again, so that a receipt is written.",
                )


def check_one_model(artifacts: Sequence[Artifact]) -> None:
    """What serves every file of a repository is of their model.

    Raises:
        UsageProblem: there are several models, and a head or a tower that readers would take for each.
    """
    beside = next((a for a in artifacts if a.kind in _FOR_ALL), None)
    models = list(dict.fromkeys(a.source.label for a in artifacts if a.is_model))
    if beside is not None and len(models) > 1:
        raise UsageProblem(
            f"{beside.files[0].name} is of one model, and readers take it for every file beside it: here are "
            f"{some(models)}",
            hint="Publish each model from a folder of its own, into a repository of its own.",
        )


def unproven(artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """The models that did not pass, or do not keep a limit of their recipe."""
    return tuple(a for a in artifacts if a.is_model and (a.state is not State.PASSED or a.broken_gates))


def check_proofs(artifacts: Iterable[Artifact], options: PushOptions) -> None:
    """Refuse what has not passed, as far as the options do not allow it.

    Raises:
        VerificationError: something has failed, or does not keep its recipe's limits; each is named.
        Unproven: something was not run, or not compared with its source.
    """
    open_ = unproven(artifacts)
    states = [State.FAILED if artifact.broken_gates else artifact.state for artifact in open_]
    left = [state for state in states if not (options.allow_failed and state is State.FAILED)]
    kind = problem(left, allow_unverified=options.allow_unverified or options.allow_failed)
    lines = "\n".join(f"  {a.label} ({a.files[0].name}): {a.outcome}" for a in open_)
    if kind is None and options.public and open_:
        refused = problem(states)
        assert refused is not None
        raise refused(
            f"A repository is made public only when all of it passed verification:\n{lines}",
            hint="Push it private (leave --public out), or verify these first.",
        )
    if kind is not None:
        raise kind(
            f"Not pushed, since this has not passed verification:\n{lines}",
            hint="Export again with verification, or choose others with --only LABEL. Marked on the card, "
            "what was not run or not compared goes with --allow-unverified, what failed with --allow-failed.",
        )
