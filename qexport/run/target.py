"""One thing that was asked for, whatever its format, and the artifacts that become of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.assign.aim import aim_of
from qexport.assign.assignment import Assignment, Prediction
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.evidence.store import Kind
from qexport.formats.format import ATTACHED
from qexport.formats.registry import format_of
from qexport.onepass.fingerprint import fingerprint
from qexport.onepass.sink import WrittenFile
from qexport.onepass.sources import Sources
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.state import State
from qexport.receipt.towers import TOWERS
from qexport.recipe.gates import Gates
from qexport.run.feedback import uses_input_scales
from qexport.run.model import sources_of
from qexport.verification.choose import traits_of, unjudged
from qexport.verification.options import VerifyOptions
from qexport.verification.twin import has_twins

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.formats.format import Format
    from qexport.formats.plan import ArtifactPlan
    from qexport.receipt.types import AgainstPlain, Artifact
    from qexport.receipt.verification import Verification
    from qexport.recipe.recipe import Unverified


_HEAD = "mtp_head"


@dataclass(frozen=True)
class Target:
    """Files of several types in a folder, or a folder (MLX with its drafter in a second one beside it).

    Attributes:
        options: of its format, which say the format.
        out: the folder.
        verify: how to prove it; ``None`` skips that, and the receipt says so.
        facts: how the importance matrix was collected, where it was, for the receipt.
        gates: the limits that it has to keep.
        unverified: whether it is good enough where nothing could run it, or compare it with its source.
        text: that of error feedback and scales of inputs, where there is any: what the receipt says of it.
        predicted: by label of its artifacts, what they are predicted to cost; where that was asked.
        asked: what the recipe asks for, as a hash (:mod:`qexport.recipe.asked`).
    """

    options: Any
    out: Path
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)
    facts: Mapping[str, Any] | None = None
    gates: Gates = field(default_factory=Gates)
    unverified: Unverified = "refuse"
    text: Mapping[str, Any] | None = None
    predicted: Mapping[str, Prediction] = field(default_factory=dict)
    asked: str = ""

    @property
    def format(self) -> Format:
        """By the options."""
        return format_of(self.options)

    def plans(self, diagnosis: Diagnosis) -> list[tuple[ArtifactPlan, Path]]:
        """Its artifacts and their folders. Reads no tensor data."""
        made = (
            *self.format.plan(diagnosis, self.options),
            *self.format.alongside(diagnosis, self.options),
        )
        heads, towers = (
            [self.fingerprint(plan) for plan in made if plan.kind == kind] for kind in ("mtp", "mmproj")
        )
        return [(self._foretold(_beside(plan, heads, towers)), self.folder_of(plan.kind)) for plan in made]

    def folder_of(self, kind: str) -> Path:
        """Where its artifact of that kind goes."""
        return self.out.with_name(self.out.name + self.format.beside.get(kind, ""))

    def _foretold(self, plan: ArtifactPlan) -> ArtifactPlan:
        """The plan with what is predicted of it, and what is to be said of that."""
        if plan.kind in ATTACHED:
            return plan
        predicted = self.predicted.get(plan.label)
        if (aim := aim_of(self.options)) is not None and not self.options.settled:
            note = f"types for {aim} are chosen when it is known what errors cost; here others stand in"
            return replace(plan, notes=(*plan.notes, note))
        if plan.assignment is None:
            return plan
        if predicted is not None:
            return replace(plan, assignment=replace(plan.assignment, predicted=predicted))
        notes = () if plan.assignment.predicted is None else plan.assignment.predicted.notes
        return replace(plan, notes=(*plan.notes, *notes))

    def plain(self) -> Target:
        """Of the best of a type: what that type alone would be written with, importance and all."""
        sizing = self.format.sizing
        assert sizing is not None
        options = sizing.plain(replace(self.options, feedback=False), self.options.like)
        chosen, usual = (self.format.folder(each).removeprefix("{name}") for each in (self.options, options))
        out = self.out
        if chosen != usual and out.name.endswith(chosen):  # a folder that is called after what was chosen
            out = out.with_name(out.name.removesuffix(chosen) + usual)
        return replace(self, options=options, out=out, predicted={})

    def chosen(self) -> dict[str, Any]:
        """What was asked for, without paths: a receipt travels with the files."""
        found: dict[str, Any] = {}
        for each in fields(self.options):
            value = getattr(self.options, each.name)
            if each.name == self.format.matrix and value is not None:
                value = matrix_facts(value, self.facts)
            elif each.name == "feedback" and value and self.text is not None:
                value = dict(self.text)
            elif isinstance(value, Path):
                value = value.name
            elif isinstance(value, Assignment):
                value = value.label if aim_of(self.options) is None else None  # chosen, not asked for
            found[each.name] = list(value) if isinstance(value, tuple) else value
        if uses_input_scales(self.options) and self.text is not None:
            found["input_scales"] = {key: fact for key, fact in self.text.items() if key != "damping"}
        return found

    def fingerprint(self, plan: ArtifactPlan) -> str:
        """What the bytes of one of its plans follow from, as a hash; of what is attached, of options only the
        importance matrix and the text of error feedback, where it uses them."""
        chosen = _without_timings(self.chosen())
        if plan.kind in ATTACHED:
            uses = {self.format.matrix: Kind.INPUT_SQUARES, "feedback": Kind.INPUT_PRODUCTS}
            used = {key for key, kind in uses.items() if any(tensor.need(kind) for tensor in plan.tensors)}
            chosen = {key: value for key, value in chosen.items() if key in used}
        elif _HEAD in plan.details:  # with another head beside it a verdict is of something else
            chosen[_HEAD] = plan.details[_HEAD]
        return fingerprint(plan, chosen)

    def check_runtime(self) -> None:
        """Raises EnvironmentProblem when what is to prove the artifacts here is not installed."""
        how, proof = self.verify, self.format.proof
        if how is None or find_spec(proof.module) is not None:
            return
        ladder = self.format.ladder
        if how.llama_server if ladder else how.runtime or how.runtime_python:
            return
        other = "a build of yours with --llama-server"
        raise EnvironmentProblem(
            f"the {'files' if ladder else 'folder'} could not be verified: {proof.module} is not installed",
            hint=f"pip install 'qexport[{proof.extra}]', name "
            f"{other if ladder else 'a Python that has a runtime with --runtime-python PATH'}, or "
            "--no-verify.",
        )

    def foresee(self, plan: ArtifactPlan, diagnosis: Diagnosis) -> str | None:
        """Why nothing here can prove it, and what could; ``None``: something can, or shall not."""
        if self.verify is None or self.format.ladder or plan.kind in self.format.beside:
            return None
        if has_twins(self.verify):
            return None
        packed = (tensor for tensor in plan.tensors if len(tensor.streams) > 1)
        odd = next((each.name for each in packed if any(size % 128 for size in each.shape[-2:])), None)
        config = json.loads(next(file.header for file in plan.files if file.name == "config.json"))
        traits = traits_of(diagnosis.repaired.family, diagnosis.repaired.text, config, odd)
        return unjudged(self.format.layout(self.options), traits, self.verify)


def _beside(plan: ArtifactPlan, heads: Sequence[str], towers: Sequence[str]) -> ArtifactPlan:
    """The plan with what the files beside it follow from that it is run with: an MTP head, vision towers."""
    found: dict[str, Any] = {}
    if heads and "mtp_file" in plan.details:
        found[_HEAD] = heads[0]
    if towers and plan.kind not in ATTACHED:
        found[TOWERS] = list(towers)
    return replace(plan, details={**plan.details, **found}) if found else plan


def matrix_facts(matrix: ImportanceMatrix, collected: Mapping[str, Any] | None) -> dict[str, Any]:
    """What receipts say of an importance matrix; ``collected``: and of how it was, where it was here."""
    return {
        "file": matrix.label,
        "sha256": matrix.sha256,
        "datasets": list(matrix.datasets),
        "calibration": None if collected is None else dict(collected),
    }


@dataclass(frozen=True)
class Item:
    """One artifact on its way: planned, written (``written``), proven (``report``).

    ``report`` stays ``None`` where verification was not asked for.

    Attributes:
        against: how the best of its size did beside the plain type, where that was asked for.
        instead_of: the place of that best one, where it was no better and this is written instead.
    """

    target: Target
    plan: ArtifactPlan
    folder: Path
    sources: Sources = field(default_factory=Sources, repr=False)
    written: tuple[WrittenFile, ...] = ()
    report: Verification | None = None
    against: AgainstPlain | None = None
    instead_of: tuple[Path, str] | None = None

    def as_found(self, there: Artifact) -> Item:
        """As an earlier run left it, by its entry in the receipt; a verdict beside other towers is none."""
        files = tuple(WrittenFile(file.name, file.size, file.sha256) for file in there.files)
        same = self.plan.details.get(TOWERS) == there.details.get(TOWERS)
        report = there.verification if same else None
        return replace(self, written=files, report=report, against=there.against_plain)

    @property
    def place(self) -> tuple[Path, str]:
        """What tells it from all others of a run: its folder and its label."""
        return self.instead_of or (self.folder, self.plan.label)

    @property
    def name(self) -> str:
        """What users know it by: the file, or the folder."""
        return self.plan.files[0].name if self.target.format.ladder else self.folder.name

    @property
    def path(self) -> Path:
        """What a runtime opens: the (first) file of a GGUF, else the folder."""
        return self.folder / self.plan.files[0].name if self.target.format.ladder else self.folder

    @property
    def receipt(self) -> Path:
        """The receipt that it is in, once it is written."""
        return self.folder / RECEIPT_NAME

    @property
    def state(self) -> State:
        """How far it is proven; what verification was not asked for has not run."""
        return State.NOT_RUN if self.report is None else self.report.state

    @property
    def attached(self) -> bool:
        """Whether it is no model by itself, so that nothing runs it."""
        return self.plan.kind in ATTACHED

    @property
    def settled(self) -> bool:
        """Whether its verdict stands: what could not be run or compared may be by now."""
        return self.attached or (self.report is not None and self.state in (State.PASSED, State.FAILED))

    @cached_property
    def fingerprint(self) -> str:
        """What its bytes follow from, as a hash."""
        return self.target.fingerprint(self.plan)


def plan(targets: Sequence[Target], diagnosis: Diagnosis, given: Sequence[Path] = ()) -> list[Item]:
    """Every artifact of every target. Reads no tensor data.

    Args:
        given: files and folders that are read besides the model, its base and what the targets name.

    Raises:
        UsageProblem: one would be written over a source, or into it; or what goes with several would have to
            be another for each.
    """
    sources = sources_of(diagnosis, tuple(targets), tuple(given))
    items: list[Item] = []
    attached: dict[tuple[Path, str], str] = {}
    for target in targets:
        for made, folder in target.plans(diagnosis):
            if made.kind in ATTACHED:  # one for all targets of a folder
                key, mine = (folder, made.label), target.fingerprint(made)
                before = attached.get(key)
                if before is not None and before != mine:
                    raise UsageProblem(
                        f"{made.files[0].name} goes with all files of {folder.name}, and not all of them "
                        "say the same of it",
                        hint="Ask for it in the same way wherever it is written (importance, error feedback, "
                        "types, names), or give them folders of their own.",
                    )
                attached[key] = mine
                if before is not None:
                    continue
            sources.refuse(folder, [file.name for file in made.files])
            items.append(Item(target, made, folder, sources))
    return items


def _without_timings(options: Mapping[str, Any]) -> dict[str, Any]:
    """How long a matrix took to collect changes no byte; its own hash is there."""
    return {
        key: {k: v for k, v in value.items() if k != "calibration"} if isinstance(value, Mapping) else value
        for key, value in options.items()
    }
