"""What a model is predicted to lose at each size, in every format that can be made for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.assign.aim import Aim
from qexport.errors import QexportError, UsageProblem
from qexport.formats.registry import FORMATS
from qexport.run.allocation import offers, refuse_blind
from qexport.run.model import is_away
from qexport.run.target import Target

if TYPE_CHECKING:
    from qexport.assign.allocate import Price
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.run.watcher import Watcher


_STEPS = (1.0, 0.5, 0.2)


@dataclass(frozen=True)
class Curve:
    """Of a format: bytes of all files, and nats of divergence per token, the smallest file first."""

    format: str
    points: tuple[Price, ...]

    def at(self, kld: float) -> Price | None:
        """The smallest file that is predicted to diverge by no more; ``None``: the format has none."""
        return next((point for point in self.points if point.kld <= kld), None)

    def to_json(self) -> dict[str, Any]:
        points = [{"bytes": point.nbytes, "kld": point.kld} for point in self.points]
        return {"format": self.format, "points": points}


def curves_of(
    diagnosis: Diagnosis, matrix: ImportanceMatrix, watcher: Watcher, threads: int | None = None
) -> list[Curve]:
    """A curve for each format that can hold the model; the weights are read once for all.

    Raises:
        UsageProblem: the matrix has no sensitivities, or the weights are on the Hub alone.
        InputError: damaged weights; or no format can hold the model, and why.
    """
    refuse_blind(Aim("max_kld", 0.0), matrix)
    if is_away(diagnosis):
        raise UsageProblem(
            "what errors cost is found in the weights, which are not here",
            hint="Download the model: `hf download ORG/NAME --local-dir DIR`, and name DIR.",
        )
    targets: list[Target] = []
    problem: QexportError | None = None
    for kind in FORMATS.values():
        if kind.sizing is None or kind.matrix is None:
            continue
        try:
            # Any aim does: what is planned are candidates of all sizes.
            target = Target(kind.options(max_kld=1.0, **{kind.matrix: matrix}), Path(kind.word))
            target.plans(diagnosis)
        except QexportError as error:
            problem = problem or error
            continue
        targets.append(target)
    if not targets and problem is not None:
        raise problem
    found = offers(targets, diagnosis, watcher, threads)
    return [Curve(each.target.format.word, tuple(each.curve())) for each in found]


def marks(curves: list[Curve]) -> list[float]:
    """Round divergences that the curves reach, the largest first.

    >>> from qexport.assign.allocate import Price
    >>> marks([Curve("gguf", (Price(1, 0.3), Price(2, 0.011)))])
    [0.2, 0.1, 0.05, 0.02]
    """
    values = [point.kld for curve in curves for point in curve.points if point.kld > 0]
    if not values:
        return []
    found = [float(f"{step}e{power}") for power in range(2, -9, -1) for step in _STEPS]
    return [mark for mark in found if min(values) <= mark <= max(values)]
