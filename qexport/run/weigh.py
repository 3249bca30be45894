"""What each unit of a recipe weighs and costs: from plans where headers can be read, guessed where not.

Plans are exact to a few bytes: the importance matrix that is not there yet is stood in for by ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.assign.aim import wants_best
from qexport.checkpoint.hub import HubCheckpoint
from qexport.doctor.turned import underneath
from qexport.families.roles import EXPERT_ROLES, Block
from qexport.formats.format import ATTACHED
from qexport.formats.gguf.importance import gguf_importance, uncollected
from qexport.formats.registry import FORMATS
from qexport.recipe.recipe import Calibration
from qexport.run.allocation import open_aim
from qexport.run.feedback import uses_feedback, uses_input_scales
from qexport.run.job import targets_of, uses_matrix
from qexport.run.local import Local
from qexport.run.matrix import Matrix, matrix_label
from qexport.run.model import taken
from qexport.run.rates import assay_core_seconds, core_seconds, guessed_core_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.checkpoint.tensors import Checkpoint
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.families.view import ModelView
    from qexport.recipe.recipe import Recipe, RecipeModel
    from qexport.recipe.select import Unit
    from qexport.run.target import Target


_BUILT_IN_TOKENS = 131_072
_GIB = 1 << 30
_NO_MATRIX = ("F32", "F16", "BF16", "Q8_0")


@dataclass(frozen=True)
class Weighed:
    """One unit: bytes on disk, seconds of one core, whether it waits for an importance matrix.

    Attributes:
        beside: bytes of what every run of its artifact writes beside it, once: a vision tower.
    """

    unit: Unit
    nbytes: int
    core_seconds: float
    weighted: bool
    verified: bool
    beside: int = 0


@dataclass(frozen=True)
class Burden:
    """All units of one subject, and what any job over it needs besides.

    Attributes:
        source: bytes that have to be on this machine's disk and are not its own: what the Hub is asked for.
        layer: bytes of the largest layer, three of which the pass may hold.
        calibration: weights times tokens of collecting importance, and of the text that goes along.
        states: bytes of hidden states that collecting may spill to disk.
        exact: from plans.
    """

    subject: str
    units: tuple[Weighed, ...]
    source: int
    layer: int
    calibration: float
    states: int
    exact: bool

    def memory(self, units: Sequence[Weighed]) -> int:
        """Bytes that a job over these units needs: the pass, then the largest artifact in a runtime."""
        running = max((each.nbytes for each in units if each.verified), default=0)
        return max(3 * self.layer + _GIB, running + 2 * _GIB if running else 0)


def weigh(recipe: Recipe, subject: RecipeModel, diagnosis: Diagnosis, units: Sequence[Unit]) -> Burden:
    """From headers alone.

    Raises:
        InputError: the model cannot be exported as it is, or not in one of the formats.
    """
    view = diagnosis.repaired.view()
    matrix = Matrix(stand_in(view, subject.given))
    weighed: list[Weighed] = []
    for artifact in recipe.artifacts:
        mine = [unit for unit in units if unit.artifact == artifact.name]
        targets = targets_of(recipe, subject, mine, Local(Path()), matrix)
        made = [plan for target in targets for plan, _ in target.plans(diagnosis)]
        plans = [plan for plan in made if plan.kind not in ATTACHED]
        verified = artifact.verify is not None
        parts = [[plan] for plan in plans] if artifact.types else [plans] * bool(mine)
        # Of several types the best files are chosen by one assay.
        assay = max((assay_seconds(target, diagnosis) for target in targets), default=0.0)
        attached = {plan.label: plan.size for plan in made if plan.kind in ATTACHED}
        for unit, part in zip(mine, parts, strict=True):
            uses = artifact.importance and (not artifact.types or uses_matrix(part))
            nbytes = sum(plan.size for plan in part)
            seconds = core_seconds(part) + assay / len(parts)
            weighed.append(Weighed(unit, nbytes, seconds, uses, verified, sum(attached.values())))
    tokens, back, fed = _tokens(recipe), _way_back(recipe), _fed(recipe)
    active = active_weights(view)
    met = view.parameters if _every_expert(recipe) else active
    return Burden(
        subject=subject.key,
        units=tuple(weighed),
        source=_download(underneath(diagnosis.subject.checkpoint)) + _bases(diagnosis),
        layer=_largest_layer(view),
        calibration=active * (tokens + 2 * back) + met * fed,
        states=(tokens + back * (view.layers + 1)) * int(view.text["hidden_size"]) * 4,
        exact=True,
    )


def guess(recipe: Recipe, subject: RecipeModel, parameters: float, units: Sequence[Unit]) -> Burden:
    """Without the model: from its number of weights, all of them active."""
    weighed = []
    for unit in units:
        artifact = recipe.artifact(unit.artifact)
        kind = FORMATS[artifact.kind]
        nbytes = int(parameters * kind.bits(artifact.options, unit.type) / 8)
        label = unit.type or kind.guess
        weighted = artifact.importance and unit.type not in _NO_MATRIX
        seconds = guessed_core_seconds(parameters, label, weighted)
        weighed.append(Weighed(unit, nbytes, seconds, weighted, artifact.verify is not None))
    on_hub = not Path(subject.choice.model).exists()
    return Burden(
        subject=subject.key,
        units=tuple(weighed),
        source=int(2 * parameters) if on_hub else 0,
        layer=int(2 * parameters / 20),  # few models have fewer layers
        calibration=parameters * (_tokens(recipe) + 2 * _way_back(recipe) + _fed(recipe)),
        states=(_tokens(recipe) + 80 * _way_back(recipe)) * 8192 * 4,
        exact=False,
    )


def stand_in(view: ModelView, name: str | None) -> ImportanceMatrix:
    """A matrix of ones with the names and sizes of the one to come."""
    sums, counts = uncollected(view)
    label = matrix_label(view, name)
    made = gguf_importance(
        view, sums, counts, datasets=["calibration"], chunk_count=1, chunk_size=512, label=label, totals=sums
    )
    return replace(made, to_come=True)


def assay_seconds(target: Target, diagnosis: Diagnosis) -> float:
    """Seconds of one core in which types for an aim are chosen; the source is read once more for it."""
    if target.format.sizing is None or open_aim(target) is None:
        return 0.0
    free = target.format.sizing.candidates(diagnosis, target.options)
    values = {tensor.name: tensor.data.numel for tensor in diagnosis.repaired.view()}
    return assay_core_seconds([values[name] for names in free.groups for name in names], free.words)


def active_weights(view: ModelView) -> float:
    """Weights that a token meets in the language model's layers; of experts, those that it is sent to."""
    total = 0.0
    experts = view.hyper.experts
    share = experts.used / experts.count if experts else 1.0
    for tensor in view:
        if tensor.block is Block.VISION or len(tensor.shape) < 2 or tensor.layer is None:
            continue
        total += tensor.data.numel * (share if tensor.role in EXPERT_ROLES else 1.0)
    return total


def _tokens(recipe: Recipe) -> int:
    calibration = recipe.calibration
    used = any(each.importance for each in recipe.artifacts)
    if calibration is None or calibration.imatrix is not None or not used:
        return 0
    return calibration.tokens or _BUILT_IN_TOKENS


def _way_back(recipe: Recipe) -> int:
    """Tokens of which gradients are taken."""
    if recipe.calibration is None or not recipe.feels:
        return 0
    return min(_tokens(recipe), recipe.calibration.sensitivity_tokens)


def _fed(recipe: Recipe) -> int:
    """Tokens that are sent along for error feedback and scales of inputs."""
    how = recipe.calibration
    scaled = any(uses_input_scales(each.options) for each in recipe.artifacts)
    if how is None:
        return Calibration().feedback_tokens if scaled else 0
    if how.imatrix is not None and how.feedback_text is None:
        return 0
    asked = scaled or any(
        uses_feedback(each.options) or wants_best(each.options) for each in recipe.artifacts
    )
    return how.feedback_tokens if asked else 0


def _every_expert(recipe: Recipe) -> bool:
    """Whether scales of inputs are measured for which every expert sees every token of that text."""
    return any(getattr(each.options, "every_expert", False) for each in recipe.artifacts)


def _largest_layer(view: ModelView) -> int:
    layers: dict[tuple[Block, int | None], int] = {}
    for tensor in view:
        # A tensor outside the layers passes in runs of a few megabytes.
        if tensor.layer is not None:
            key = (tensor.block, tensor.layer)
            layers[key] = layers.get(key, 0) + tensor.data.nbytes
    return max(layers.values(), default=0)


def _download(checkpoint: Checkpoint) -> int:
    return checkpoint.download_size if isinstance(checkpoint, HubCheckpoint) else 0


def _bases(diagnosis: Diagnosis) -> int:
    """The shards of bases on the Hub that hold what is taken of them."""
    total = 0
    for base, names in taken(diagnosis):
        files = {base.tensors[name].file for name in names}
        total += sum(stored.nbytes for stored in base.tensors.values() if stored.file in files)
    return total
