"""From an aim to types: candidates are planned, the source is assayed once for all of them, types are chosen.

For each target that says what is to come out (``qexport.assign.aim``), each of its format's words is planned
as if every tensor had it; all these plans go through one assay. What the tensors cost in each then stands
beside what they take, and the solver chooses. The chosen types are put into the target's options, so that
all that follows is an export with given types. The plan of it has the last word on size: where headers grow
with what they name, the budget shrinks by as much, and types are chosen again.

Tensors of which no sensitivity is known are not chosen for: they keep what the format gives them, and it is
said. Targets without an aim are assayed along, where there are any with one: they get a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from qexport.assign.aim import Aim, aim_of, wants_best
from qexport.assign.allocate import Allocation, Price, Prices, allocate, cheapest, curve
from qexport.assign.assignment import Assignment, Prediction
from qexport.errors import InputError, QexportError, UsageProblem, some
from qexport.evidence.sensitivity import reached, weights_of
from qexport.families.roles import Block, Role
from qexport.formats.format import ATTACHED, Candidates
from qexport.onepass.assay import assay, assayed_bytes
from qexport.receipt.store import read_receipt
from qexport.run.receipts import entry_of, plain_entry_of
from qexport.run.steps import ready_kernels
from qexport.run.watcher import Phase
from qexport.sizes import counted, size_text

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.formats.format import Sizing
    from qexport.formats.plan import ArtifactPlan
    from qexport.receipt.types import Artifact, Forecast
    from qexport.run.target import Target
    from qexport.run.watcher import Watcher


_HINT = (
    "`qexport imatrix MODEL --corpus mine.jsonl --sensitivity` collects one; an export that collects its "
    "matrix itself (--imatrix mine.jsonl, in a recipe calibration: {corpus: mine.jsonl}) does so when it has "
    "an aim. Text like that which the model is for matters most."
)
ROUTED = (
    "the prediction does not know that tokens go to other experts than before: mixtures were measured to "
    "diverge two to three times as far"
)
_DRAWN = 24  # points of a curve that receipts keep
_ROUNDS = 8  # until a plan's own headers fit; the second does in practice


def refuse_blind(aim: Aim, matrix: ImportanceMatrix | None) -> None:
    """Raise UsageProblem where an aim has no sensitivities to go by: without, choosing does harm."""
    if matrix is None:
        raise UsageProblem(
            f"{aim} needs an importance matrix with sensitivities: what errors in each tensor cost",
            hint=_HINT,
        )
    if matrix.sensitivity is None:
        raise UsageProblem(
            f"{matrix.label} has no sensitivities, and types for {aim} cannot be chosen by importance alone: "
            "such files are worse than plain ones",
            hint=_HINT,
        )


def settle(
    targets: Sequence[Target], diagnosis: Diagnosis, watcher: Watcher, threads: int | None = None
) -> list[Target]:
    """The targets with their types chosen, and with what all of them are predicted to cost.

    Raises:
        InputError: nothing of that size, or that good, can be made of the model; damaged weights.
    """
    settled: list[Target] = []
    for offer in offers(targets, diagnosis, watcher, threads):
        if (aim := open_aim(offer.target)) is None:
            settled.append(replace(offer.target, predicted=offer.predictions()))
            continue
        found = offer.settled(aim)
        settled.append(found)
        predicted = found.options.types_from.predicted
        watcher.say(f"types chosen for {aim}: {predicted} is predicted")
        for note in predicted.notes:
            watcher.say(f"  {note}")
    return settled


def open_aim(target: Target) -> Aim | None:
    """What types are still to be chosen for."""
    aim = aim_of(target.options)
    return None if aim is None or target.options.settled else aim


def remembered(target: Target, diagnosis: Diagnosis) -> Target:
    """The target with the types of an earlier run, where what it wrote from the same things is all there: the
    chosen one, or the plain one that was as good."""
    if open_aim(target) is None:
        return target
    base = target.plans(diagnosis)[0][0]
    key = target.fingerprint(base)
    for label, found, is_there in _tried(target):
        if found is None or found.key != key:
            continue
        predicted = Prediction(found.kld, found.draft_kld, found.aim, key=key)
        options = with_types(target.options, replace(base, label=label), found.types, predicted)
        again = replace(target, options=options)
        try:
            plan = again.plans(diagnosis)[0][0]
        except QexportError:
            continue
        if is_there(again.fingerprint(plan)) is not None:
            return again
    return target


def _tried(target: Target) -> Iterator[tuple[str, Forecast | None, Callable[[str], Artifact | None]]]:
    """What earlier runs have chosen: its name, what was predicted of it, and what finds what came of it."""
    for made in read_receipt(target.out).receipt.artifacts:
        yield made.label, made.predicted, partial(entry_of, target.out)
    if wants_best(target.options):
        out = target.plain().out
        for made in read_receipt(out).receipt.artifacts:
            if made.against_plain is not None:
                yield made.against_plain.label, made.against_plain.tried, partial(plain_entry_of, out)


def offers(
    targets: Sequence[Target], diagnosis: Diagnosis, watcher: Watcher, threads: int | None = None
) -> list[Offer]:
    """What can be chosen between for each target, with its prices: the source is read once for all.

    Raises:
        InputError: damaged weights.
    """
    asked = [_planned(target, diagnosis) for target in targets]
    plans = [plan for each, _, _ in asked for plan in each.values()]
    ready_kernels(plans, watcher.say)
    with watcher.phase(Phase.ASSAYING, assayed_bytes(plans)) as progress:
        costs = iter(assay(plans, threads=threads, progress=progress))
    return [
        Offer(target, diagnosis, each, {word: next(costs) for word in each}, free, head)
        for target, (each, free, head) in zip(targets, asked, strict=True)
    ]


def _planned(target: Target, diagnosis: Diagnosis) -> tuple[dict[str, ArtifactPlan], Candidates, int]:
    """The plans that are assayed for a target, its own and one for each word that may be chosen; what may be;
    and the bytes of an MTP head's file beside it."""
    every = [plan for plan, _ in target.plans(diagnosis)]
    own = {plan.label: plan for plan in every if plan.kind not in ATTACHED}
    head = sum(plan.size for plan in every if plan.kind == "mtp")
    if open_aim(target) is None or target.format.sizing is None:
        return own, Candidates(words=(), groups=()), head
    base = next(iter(own.values()))
    free = target.format.sizing.candidates(diagnosis, target.options)
    words = {word: with_types(target.options, base, free.all_as(word)) for word in free.words}
    made = {word: target.format.plan(diagnosis, options)[0] for word, options in words.items()}
    return {base.label: base} | made, free, head


def with_types(
    options: Any, base: ArtifactPlan, types: Mapping[str, str], predicted: Prediction | None = None
) -> Any:
    """The options with these types over those of ``base``, whose label they keep."""
    assert base.assignment is not None
    whole = {**base.assignment.types, **types}
    return replace(options, types_from=Assignment(base.assignment.format, base.label, whole, predicted))


@dataclass(frozen=True)
class Offer:
    """What a target may become, and what that takes and costs.

    Attributes:
        plans: its own first (a stand-in where it has an aim), then by word those of all candidates.
        costs: nats per token, by the same keys and canonical name.
        free: what may be chosen; nothing where there is no aim.
        head: bytes of an MTP head in a file beside it, which a size includes.
    """

    target: Target
    diagnosis: Diagnosis
    plans: Mapping[str, ArtifactPlan]
    costs: Mapping[str, Mapping[str, float]]
    free: Candidates
    head: int = 0

    @property
    def base(self) -> ArtifactPlan:
        """Tensors that are not chosen for are as they are here."""
        return next(iter(self.plans.values()))

    @cached_property
    def prices(self) -> Prices:
        """Of the groups that may be chosen for and of which something is known."""
        nbytes = {word: _bytes_by_name(self.plans[word]) for word in self.free.words}
        groups: dict[str, dict[str, Price]] = {}
        members: dict[str, tuple[str, ...]] = {}
        for names in self.free.groups:
            barred = self.free.barred.get(names[0], frozenset())
            offered = {
                word: Price(
                    sum(nbytes[word][name] for name in names), sum(self.costs[word][name] for name in names)
                )
                for word in self.free.words
                if word not in barred and all(name in self.costs[word] for name in names)
            }
            kept = {word: price for word, price in offered.items() if math.isfinite(price.kld)}
            if kept:
                groups[names[0]], members[names[0]] = kept, names
        return Prices(groups, members)

    @cached_property
    def beside(self) -> int:
        """Bytes of all files that are not those of the groups."""
        chosen = {name for names in self.prices.members.values() for name in names}
        return self.base.size - sum(n for name, n in _bytes_by_name(self.base).items() if name in chosen)

    def predictions(self) -> dict[str, Prediction]:
        """What the target's own plans cost, by label."""
        return {label: self._prediction(self.costs[label]) for label in self.plans}

    def curve(self, most: int = 120) -> list[Price]:
        """What the model is predicted to diverge by at each size, all files and the head's bytes included.

        Args:
            most: points; those between which it falls most evenly.
        """
        every = curve(self.prices)
        steps = sorted({round(at * (len(every) - 1) / (most - 1)) for at in range(most)})
        fixed = sum(cost for name, cost in self._kept.items() if name not in self._head)
        points: list[Price] = []
        for at in steps:
            chosen = allocate(self.prices, every[at].nbytes)
            assert chosen is not None
            trunk = {group: word for group, word in chosen.words.items() if group not in self._head}
            kld = self.prices.of(trunk).kld
            points.append(Price(self.beside + chosen.price.nbytes, fixed + kld))
        return points

    def settled(self, aim: Aim) -> Target:
        """The target with the types that its aim comes to.

        Raises:
            InputError: nothing of that size, or that good, can be made of the model.
        """
        if aim.kind == "max_kld":
            return self._of(self._good(float(aim.value)), aim)
        limit = self._limit(aim)
        budget = limit - self.beside
        for _ in range(_ROUNDS):
            chosen = allocate(self.prices, budget)
            if chosen is None:
                raise self._too_small(aim)
            found = self._of(chosen, aim, limit)
            excess = found.plans(self.diagnosis)[0][0].size - limit
            if excess <= 0:
                return found
            budget = chosen.price.nbytes - excess
        raise self._too_small(aim)

    @property
    def _sizing(self) -> Sizing:
        assert self.target.format.sizing is not None
        return self.target.format.sizing

    def _limit(self, aim: Aim) -> int:
        """Bytes of all files that are not exceeded."""
        if aim.kind == "size":
            return int(aim.value) - self.head
        if aim.kind == "like":
            options = self._sizing.plain(self.target.options, aim.value)
            return self.target.format.plan(self.diagnosis, options)[0].size
        data = int(self.base.data_size * aim.value / self.base.bits_per_weight)
        return self.base.size - self.base.data_size + data

    def _good(self, most: float) -> Allocation:
        chosen = cheapest(self.prices, most - self._fixed)
        if chosen is None:
            best = sum(min(p.kld for p in words.values()) for words in self.prices.groups.values())
            raise InputError(
                f"no file of {self.target.format.words.name} with these types is predicted to diverge by "
                f"{most:g} nats or less; the best by {best + self._fixed:.2g}",
                hint="Ask for a larger divergence.",
            )
        return chosen

    def _too_small(self, aim: Aim) -> InputError:
        least = sum(min(p.nbytes for p in words.values()) for words in self.prices.groups.values())
        floors = "".join(f"; {floor}" for floor in self.free.floors)
        head = self.head if aim.kind == "size" else 0
        floors += f"; {size_text(head)} of it are the MTP head's file" if head else ""
        return InputError(
            f"{aim} is too small for this model: with the smallest types it takes "
            f"{size_text(self.beside + least + head)}{floors}",
            hint="Ask for more.",
        )

    def _of(self, chosen: Allocation, aim: Aim, limit: int | None = None) -> Target:
        """The target with the chosen types."""
        words = self.prices.types(chosen.words)
        types: dict[str, str] = {}
        for name, word in words.items():
            made = self.plans[word].assignment
            assert made is not None
            types[name] = made.types[name]  # what the word came to where rows are no whole blocks
        costs = dict(self.costs[self.base.label])
        costs |= {name: self.costs[word][name] for name, word in words.items()}
        predicted = self._prediction(costs, str(aim))
        room = self.beside + chosen.price.nbytes if limit is None else limit
        room -= self.base.size - self.base.data_size
        if self.free.others and room < self.free.enough:
            untried = f"{self.free.others} are slow to encode and were not tried; --size tries them"
            predicted = replace(predicted, notes=(*predicted.notes, untried))
        label = self._sizing.label(self.diagnosis, self.target.options, room)
        base = replace(self.base, label=label)
        return replace(self.target, options=with_types(self.target.options, base, types, predicted))

    @cached_property
    def _fixed(self) -> float:
        """What tensors cost that are not chosen for."""
        return sum(self._kept.values())

    @cached_property
    def _kept(self) -> dict[str, float]:
        """What tensors cost that are not chosen for, by name."""
        chosen = {name for names in self.prices.members.values() for name in names}
        return {name: cost for name, cost in self.costs[self.base.label].items() if name not in chosen}

    @cached_property
    def _head(self) -> frozenset[str]:
        """The MTP head's tensors."""
        view = self.diagnosis.repaired.view()
        return frozenset(tensor.name for tensor in view if tensor.block is Block.MTP)

    @cached_property
    def _drawn(self) -> tuple[tuple[int, float], ...]:
        """The curve as receipts have it: the same whatever is chosen."""
        return tuple((point.nbytes, point.kld) for point in self.curve(most=_DRAWN))

    def _prediction(self, costs: Mapping[str, float], aim: str = "") -> Prediction:
        draft = [cost for name, cost in costs.items() if name in self._head]
        notes: list[str] = []
        if aim:
            notes = [*self.free.floors, *self._unknown(), *_cold(self.base, costs)]
            if routes(self.diagnosis):
                notes.append(ROUTED)
        return Prediction(
            sum(cost for name, cost in costs.items() if name not in self._head),
            sum(draft) if draft else None,
            aim,
            tuple(notes),
            self.target.fingerprint(self.base) if aim else "",
            self._drawn if aim else (),
        )

    def _unknown(self) -> list[str]:
        left = [name for names in self.free.groups if names[0] not in self.prices.groups for name in names]
        if not left:
            return []
        return [
            f"no sensitivity is known of {counted(len(left), 'tensor')}: as in {self.base.label}, "
            f"and the prediction is without them: {some(left, 4)}"
        ]


def routes(diagnosis: Diagnosis) -> bool:
    """Whether the model sends tokens to experts."""
    return diagnosis.repaired.view().find(Role.ROUTER) is not None


def _cold(plan: ArtifactPlan, names: Mapping[str, float]) -> list[str]:
    """What is said of experts without sensitivities."""
    cold: dict[str, tuple[int, int]] = {}
    for name in names:
        for part in weights_of(plan.evidence, name):
            known = reached(part)
            if not known.all():
                cold[name] = (int((~known).sum()), len(known))
    if not cold:
        return []
    unseen, experts = (sum(counts) for counts in zip(*cold.values(), strict=True))
    return [
        f"{unseen} of {experts} experts in {counted(len(cold), 'tensor')} have no sensitivity; each "
        "counts as the mean "
        f"of those of its tensor that have one: {some(list(cold), 4)}"
    ]


def _bytes_by_name(plan: ArtifactPlan) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in plan.tensors:
        found[tensor.canonical] = found.get(tensor.canonical, 0) + tensor.nbytes
    return found
