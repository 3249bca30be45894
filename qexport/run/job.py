"""A recipe run to its end: every artifact of every model from one read of each.

Read from the top: :func:`run` plans all models, so that what can be refused is refused before the first
weight of one is read; fetches what is on the Hub; then makes one model after the other (evidence, one pass,
proofs, gates); and in the end writes the report and publishes. Every command that exports is a recipe that is
run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.assign.aim import aim_of, wants_best
from qexport.errors import QexportError, Unproven, UsageProblem, VerificationError
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.ranks import here
from qexport.formats.gguf.file_name import model_stem
from qexport.onepass.sources import Sources
from qexport.optional import WEIGHTS, require
from qexport.receipt.plainly import ended
from qexport.recipe.asked import asked_sha256
from qexport.recipe.publication import destinations, pushes
from qexport.recipe.recipe import Calibration
from qexport.recipe.select import Unit, units_of
from qexport.report.write import REPORT_NAMES, write_report
from qexport.run import feedback, steps
from qexport.run.allocation import open_aim, refuse_blind, remembered, settle
from qexport.run.best import (
    GENERAL,
    Heldout,
    divided,
    each_best,
    heldout_beside,
    judged,
    lost,
    plain_items,
    plain_there,
    remove,
)
from qexport.run.gates import judge_gates, words
from qexport.run.head import with_tuned_heads
from qexport.run.local import Local
from qexport.run.matrix import Matrix, Wanted, collect, corpus_of, matrix_label, want, write_matrix
from qexport.run.model import examine, fetched, is_away
from qexport.run.outcome import Made, Outcome
from qexport.run.rates import slowly
from qexport.run.target import Item, Target, matrix_facts, plan
from qexport.run.watcher import Phase, Watcher

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.publishing.plan import PushOptions
    from qexport.publishing.push import Pushed, Rehearsal
    from qexport.recipe.recipe import AskedArtifact, Recipe, RecipeModel
    from qexport.run.feedback import FeedbackText


def run(
    recipe: Recipe, local: Local, watcher: Watcher | None = None, units: Sequence[Unit] | None = None
) -> Outcome:
    """Make and prove every artifact of a recipe.

    A run that was stopped or killed goes on when it is started again; what is there already, from the same
    source and settings, is not made again. What fails verification is in the outcome, with all the rest.

    Args:
        watcher: told of everything on the way.
        units: what is asked for; everything by default.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: what is in the way, before the first byte if it can be
            known by then.
    """
    if (count := here().count) > 1:
        raise UsageProblem(
            f"an export is one process, and torchrun has started {count}",
            hint="Collect the matrix with torchrun -m qexport imatrix, then export with --imatrix FILE.",
        )
    require(*WEIGHTS)
    watcher = watcher or Watcher()
    units = units_of(recipe) if units is None else units
    if local.pushing is not None:
        from qexport.publishing.push import check_destinations

        where = [each.repo for each in destinations(recipe, units)]
        check_destinations(where, token=local.pushing == "push")
    recipe = with_tuned_heads(recipe, local, watcher, {unit.subject for unit in units})
    works = plan_run(recipe, local, watcher, units)
    works = [_fetched(work, watcher) for work in works]
    made = tuple(_made(work, watcher) for work in works)
    return _finished(recipe, units, local, made, watcher)


def plan_run(recipe: Recipe, local: Local, watcher: Watcher, units: Sequence[Unit]) -> list[Work]:
    """Every model with its artifacts planned to the byte, and checked as far as headers go.

    A corpus is read and tokenized, so that it can be refused; no weights are read.
    """
    works: list[Work] = []
    for subject in recipe.subjects:
        mine = tuple(unit for unit in units if unit.subject == subject.key)
        if mine:
            work = plan_model(recipe, subject, mine, local, watcher)
            if work.wanted is None:
                work = work.remembered()
                work.check()
            works.append(work)
    return works


def plan_model(
    recipe: Recipe, subject: RecipeModel, units: tuple[Unit, ...], local: Local, watcher: Watcher
) -> Work:
    """One model looked at and its artifacts planned, with a stand-in for a matrix that is to be collected."""
    diagnosis = examine(subject.choice, download=False)
    watcher.diagnosed(diagnosis)
    work = Work(recipe, subject, units, local, diagnosis)
    if local.report:
        Sources(given=work.inputs).refuse(local.out or Path(), REPORT_NAMES)
    how = recipe.calibration
    asked = [recipe.artifact(name) for name in dict.fromkeys(unit.artifact for unit in units)]
    aims = {
        each.name: aim
        for each in asked
        for options in each_best(each.options)
        if (aim := aim_of(options)) is not None
    }
    best = any(wants_best(each.options) for each in asked)
    for each in asked:
        if each.name in aims and (how is None or not each.importance):
            refuse_blind(aims[each.name], None)
        if feedback.uses_feedback(each.options):
            feedback.refuse_unread(how, each)
        if feedback.uses_input_scales(each.options):
            feedback.refuse_forgotten(how, each)
    if how is None or not any(each.importance for each in asked):
        return _with_text(work, how or Calibration(), watcher)
    if how.imatrix is not None:
        matrix = read_imatrix(how.imatrix)
        for aim in aims.values():
            refuse_blind(aim, matrix)
        heldout = heldout_beside(matrix, how, diagnosis.repaired.view()) if best else None
        return _with_text(replace(work, matrix=Matrix(matrix), heldout=heldout), how, watcher)
    view, corpus = diagnosis.repaired.view(), corpus_of(how)
    if best:
        corpus, heldout = divided(corpus, how, view)
        work = replace(work, heldout=heldout)
        if how.corpus is None:
            watcher.say(GENERAL)
    how = replace(how, sensitivity=recipe.feels)
    # Beside the first GGUF files that use it; else in a folder of its own.
    ladder = next((each for each in recipe.artifacts if each.format.ladder and each.importance), None)
    folder, own_name = work.out / f"{work.name}-imatrix", subject.given
    if ladder is not None:
        folder, own_name = work.folder(ladder), own_name or ladder.options.model_name
    wanted = want(how, local.stream, view, folder, matrix_label(view, own_name), corpus)
    work = replace(work, wanted=wanted, matrix=wanted.expected(view))
    work = _with_text(work, how, watcher)
    if aims or uses_matrix([item.plan for item in work.items]):
        return work
    watcher.say("none of these types uses an importance matrix; none is collected")
    return replace(work, wanted=None, matrix=None)


def _with_text(work: Work, how: Calibration, watcher: Watcher) -> Work:
    """With the text that goes along, where any artifact asks for it or is to be the best."""
    asked = [work.recipe.artifact(unit.artifact).options for unit in work.units]
    scaled = any(feedback.uses_input_scales(each) for each in asked)
    if not scaled and not any(feedback.uses_feedback(each) or wants_best(each) for each in asked):
        return work
    if how.imatrix is not None and how.feedback_text is None:
        watcher.say("without error feedback: no text is given beside the matrix (--feedback-text)")
        return work
    view = work.diagnosis.repaired.view()
    return replace(work, text=feedback.feedback_text(how, work.local.stream, view, work.wanted))


def foreseen(work: Work, watcher: Watcher) -> Work:
    """What is known before anything is written: with a matrix that is ready and has sensitivities, types and
    predictions; the weights are read for it."""
    matrix = None if work.wanted is not None or work.matrix is None else work.matrix.values
    known = matrix is not None and matrix.sensitivity is not None and not is_away(work.diagnosis)
    return work.settle(watcher) if known else work


@dataclass(frozen=True)
class Work:
    """A model's units, planned.

    Attributes:
        matrix: for artifacts that use importance: the one that is expected, then the one that was collected.
        wanted: the matrix that has to be collected first, if one has to be.
        text: that of error feedback, where there is any.
        chosen: the targets, once the types are chosen of those that have an aim.
        heldout: what the best files of their sizes are compared with plain ones on.
    """

    recipe: Recipe
    subject: RecipeModel
    units: tuple[Unit, ...]
    local: Local
    diagnosis: Diagnosis
    matrix: Matrix | None = None
    wanted: Wanted | None = None
    text: FeedbackText | None = None
    chosen: tuple[Target, ...] = ()
    heldout: Heldout | None = None

    @property
    def out(self) -> Path:
        """Where the artifacts' folders are."""
        return self.local.out or Path()

    @property
    def name(self) -> str:
        """What stands for the model in the names of folders."""
        return (
            self.subject.name
            if self.local.out is not None
            else model_stem(self.diagnosis.subject.checkpoint.label)
        )

    def folder(self, artifact: AskedArtifact) -> Path:
        """Where an artifact goes."""
        return self.out / artifact.folder.replace("{name}", self.name)

    @cached_property
    def targets(self) -> list[Target]:
        """One for each artifact that is asked for."""
        return list(self.chosen) or targets_of(
            self.recipe, self.subject, self.units, self.local, self.matrix, self.name, self.text
        )

    @cached_property
    def items(self) -> list[Item]:
        """Everything that is to be written."""
        return plan(self.targets, self.diagnosis, self.inputs)

    def remembered(self) -> Work:
        """With the types that an earlier run has chosen, where all that it wrote is there."""
        if self.local.overwrite:
            return self
        return replace(self, chosen=tuple(remembered(each, self.diagnosis) for each in self.targets))

    def settle(self, watcher: Watcher) -> Work:
        """With the types chosen of what has an aim, and predictions of all; the weights are read once."""
        return replace(self, chosen=tuple(settle(self.targets, self.diagnosis, watcher, self.local.threads)))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that the recipe names, and itself: those of its other models, too."""
        how, choices = self.recipe.calibration, [each.choice for each in self.recipe.subjects]
        files = (self.recipe.path, *(() if how is None else how.files))
        folders = (Path(name) for each in choices for name in each.models)
        return tuple(path for path in (*files, *folders) if path is not None and path.exists())

    def matrix_plans(self) -> list[ArtifactPlan]:
        """The matrix as a file, where one is collected."""
        return [] if self.wanted is None or self.matrix is None else [self.matrix.plan(self.wanted.name)]

    def settled(self) -> tuple[list[Item], list[Item]]:
        """What is there already, and what is to be written."""
        if self.local.overwrite:
            return [], self.items
        done, todo = steps.finished(self.items, home=self.local.out)
        plain = plain_there(todo, self.diagnosis, self.inputs)
        places = {item.place for item in plain}
        return [*done, *plain], [item for item in todo if item.place not in places]

    def check(self) -> None:
        """What can be known to fail before anything is downloaded or collected."""
        _, todo = self.settled()
        if todo:
            beside = {} if self.wanted is None else {self.wanted.out: self.matrix_plans()}
            steps.check(todo, overwrite=self.local.overwrite, home=self.local.out, beside=beside)


def targets_of(
    recipe: Recipe,
    subject: RecipeModel,
    units: Sequence[Unit],
    local: Local,
    matrix: Matrix | None = None,
    name: str | None = None,
    text: FeedbackText | None = None,
) -> list[Target]:
    """The targets of one model, one for each artifact that is asked for, and for each best file.

    Args:
        units: what is asked for; those of other models are left out.
        matrix: for artifacts that use importance.
        name: stands for the model in the names of folders; the recipe's own by default.
        text: that of error feedback.
    """
    found: list[Target] = []
    for artifact in recipe.artifacts:
        mine = [unit for unit in units if (unit.subject, unit.artifact) == (subject.key, artifact.name)]
        if not mine:
            continue
        changed: dict[str, Any] = {}
        if artifact.types:
            changed["types"] = tuple(unit.type for unit in mine)
        if artifact.importance and artifact.format.matrix is not None:
            changed[artifact.format.matrix] = None if matrix is None else matrix.values
        if subject.given is not None and getattr(artifact.options, "model_name", "") is None:
            changed["model_name"] = subject.given
        folder = artifact.folder.replace("{name}", name or subject.name)
        verify = None if local.runtimes is None else local.runtimes.of(artifact.verify)
        facts = matrix.facts if matrix is not None and artifact.importance else None
        options = replace(artifact.options, **changed)
        out = (local.out or Path()) / folder
        said = None if text is None else text.facts
        asked = "" if recipe.path is None else asked_sha256(recipe, subject, artifact)
        found += [
            Target(each, out, verify, facts, artifact.gates, artifact.unverified, said, asked=asked)
            for each in each_best(options, feedback=text is not None)
        ]
    return found


def uses_matrix(plans: Sequence[ArtifactPlan]) -> bool:
    """Whether any of the artifacts has a use for an importance matrix."""
    return any(each.details.get("importance_matrix") for each in plans)


def _fetched(work: Work, watcher: Watcher) -> Work:
    """All data at hand, and the matrix of an earlier run; whose files are there has the same one."""
    work = replace(work, diagnosis=fetched(work.subject.choice, work.diagnosis))
    if work.wanted is None:
        return work
    there = None if work.local.overwrite else work.wanted.there(work.diagnosis.repaired.view())
    if there is None:
        work.check()
        return work
    watcher.say(f"importance matrix: {work.wanted.name} is there, from the same weights and text")
    return replace(work, matrix=there, wanted=None)


def _made(work: Work, watcher: Watcher) -> Made:
    """One model to its end: evidence, the pass, proofs, gates."""
    if work.wanted is not None:
        work = replace(work, matrix=_collected(work, work.wanted, watcher))
    work = work.remembered()
    if any(open_aim(target) or target.gates.predicted_ratio is not None for target in work.targets):
        work = work.settle(watcher)
    items, receipts = _proven(work, *_preferred(work, *_written(work, watcher), watcher), watcher)
    watcher.made(items, receipts)
    gates = judge_gates(items, head=bool(work.diagnosis.repaired.mtp_layers))
    return Made(work.subject, tuple(items), tuple(gates), work.diagnosis)


def _collected(work: Work, wanted: Wanted, watcher: Watcher) -> Matrix:
    """The matrix, collected, and kept as a file."""
    matrix = collect(wanted, work.diagnosis.repaired.view(), watcher)
    options = {"imatrix": matrix_facts(matrix.values, matrix.facts)}
    *_, notes = write_matrix(wanted, matrix, work.diagnosis, watcher, options=options, given=work.inputs)
    for note in notes:
        watcher.say(f"  {note}")
    return matrix


def _written(work: Work, watcher: Watcher) -> tuple[list[Item], list[Item]]:
    """What was there already, and what has been written now, from one read."""
    done, todo = work.settled()
    for item in done:
        verdict = "not verified yet" if item.report is None else ended(item.report)
        told = "" if item.attached else f" ({verdict})"
        watcher.say(f"{item.name} is there, from the same source and options{told}")
    return done, _written_now(work, todo, watcher) if todo else []


def _written_now(work: Work, todo: list[Item], watcher: Watcher) -> list[Item]:
    local, plans = work.local, [item.plan for item in todo]
    steps.check(todo, overwrite=local.overwrite, home=local.out)
    for item in todo:
        if (why := item.target.foresee(item.plan, work.diagnosis)) is not None:
            watcher.say(f"{item.name}: nothing here can prove it ({why})")
    watcher.planned(todo)
    steps.ready_kernels(plans, watcher.say)
    if (slow := slowly(plans, local.threads)) is not None:
        watcher.say(f"  {slow}")
    with watcher.phase(Phase.WRITING, sum(each.size for each in plans)) as progress:
        return steps.write(
            todo,
            work.diagnosis,
            home=local.out,
            threads=local.threads,
            progress=progress,
            say=watcher.say,
            text=work.text,
        )


def _preferred(
    work: Work, done: list[Item], written: list[Item], watcher: Watcher
) -> tuple[list[Item], list[Item]]:
    """The same with the best files compared with plain ones, which take their place where as good."""
    if work.heldout is None:
        return done, written
    known = [
        item
        for item in done
        if item.attached or item.against is not None or not wants_best(item.target.options)
    ]
    open_ = [item for item in done if item not in known]
    found = judged([*open_, *written], work.diagnosis, work.heldout, watcher.say)
    no_better = lost(found)
    if not no_better:
        return known, found
    plain = plain_items(no_better, work.diagnosis, work.inputs)
    gone = {item.folder / file.name for item in no_better for file in item.written}
    if not any(item.folder / file.name in gone for item in plain for file in item.plan.files):
        steps.check(plain, overwrite=work.local.overwrite, home=work.local.out)
    remove(no_better)
    return known, [*(item for item in found if item not in no_better), *_written_now(work, plain, watcher)]


def _proven(
    work: Work, done: Sequence[Item], written: Sequence[Item], watcher: Watcher
) -> tuple[list[Item], list[Path]]:
    """Everything with its verdict, in the order asked for; receipts that were written."""
    unproven = [*(item for item in done if not item.settled), *written]
    proven, receipts = steps.prove(unproven, work.diagnosis, watcher, measure=work.recipe.measure)
    results = [*(item for item in done if item.settled), *proven]
    order = [item.place for item in work.items]
    results.sort(key=lambda item: order.index(item.place))
    return results, receipts or [work.items[0].receipt]


def _finished(
    recipe: Recipe, units: Sequence[Unit], local: Local, models: tuple[Made, ...], watcher: Watcher
) -> Outcome:
    """Say what gates were not kept, write the report, and publish if that was asked for."""
    gates = [gate for made in models for gate in made.gates]
    for gate in gates:
        if not gate.passed:
            watcher.say(f"gate not kept: {words(gate)}")
    report = None
    if local.report and models:
        main = [made for made in models if made.subject.key == "model"] or [models[0]]
        report = write_report(
            [folder for made in main for folder in made.folders],
            local.out or Path(),
            gates=gates,
            compare=[folder for made in models if made not in main for folder in made.folders],
        )
        watcher.reported(report)
    pushed: list[Pushed | Rehearsal] = []
    refused: list[tuple[str, QexportError]] = []
    if local.pushing is not None:
        every = pushes(recipe, units, local.out or Path())
        pushed, refused = publish_all(every, watcher, rehearsal=local.pushing == "rehearse")
    return Outcome(models, report, tuple(pushed), tuple(refused), local.allow_unverified)


def publish(options: PushOptions, watcher: Watcher, *, rehearsal: bool = False) -> Pushed | Rehearsal:
    """Publish a folder, or plan how.

    Raises:
        InputError, UsageProblem, VerificationError, Unproven, EnvironmentProblem: as a push does.
    """
    from qexport.publishing.push import push, rehearse

    def bar(total: int) -> Any:
        return watcher.phase(Phase.HASHING, total)

    done: Pushed | Rehearsal
    if rehearsal:
        done = rehearse(options, watcher.say, bar=bar)
    else:
        done = push(options, watcher.say, bar=bar, bars=watcher.upload_bars)
    watcher.pushed(options, done)
    return done


def publish_all(
    every: Sequence[PushOptions], watcher: Watcher, *, rehearsal: bool
) -> tuple[list[Pushed | Rehearsal], list[tuple[str, QexportError]]]:
    """Publish folders of a run; what may not be published is refused, and does not hold up the others."""
    done: list[Pushed | Rehearsal] = []
    refused: list[tuple[str, QexportError]] = []
    for options in every:
        try:
            done.append(publish(options, watcher, rehearsal=rehearsal))
        except (Unproven, VerificationError) as error:
            watcher.say(f"{options.repo}: {error.message}")
            refused.append((options.repo, error))
    return done, refused
