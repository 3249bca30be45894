"""Verify one folder (MLX, FP8, NVFP4, or plain safetensors): what it stores, then what runtimes make of it.

Judged like a GGUF. Loaders do not check what matters most (is every module stored as the config tells them?),
so that is asked first, by us (``stored_form``). Hardly any runtime runs an MTP head without a GPU; what the
head is worth is measured apart, by one engine for all formats (:mod:`qexport.verify.comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.artifact import Kind
from qexport.artifacts.opening import open_artifact
from qexport.checkpoint.chat_templates import read_templates
from qexport.checkpoint.local import LocalCheckpoint
from qexport.children.redact import redact
from qexport.errors import EnvironmentProblem, InputError
from qexport.families.roles import Block
from qexport.receipt.measures import bits_per_weight
from qexport.receipt.names import is_made_here
from qexport.receipt.verification import Check, Finding, Report, Status
from qexport.verify.choose import choose_runtime
from qexport.verify.conversation import folder_ends, judge_ends, source_ends, template_kept
from qexport.verify.folder_type import folder_type
from qexport.verify.judge import skipped
from qexport.verify.memory import shortage
from qexport.verify.options import VerifyOptions
from qexport.verify.steps import Progress, Steps, Subject, report_of
from qexport.verify.stored_numbers import folder_numbers

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Artifact
    from qexport.families.view import ModelView
    from qexport.verify.reference import Reference
    from qexport.verify.runtime import Runtime


StoredFormCheck = Callable[["Artifact"], Sequence[Finding]]


def verify_folder(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions | None = None,
    runtimes: Sequence[Runtime] | None = None,
    reference: Reference | None = None,
    stored_form: StoredFormCheck | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge the folder at ``path``.

    Args:
        view: the repaired source; without it neither tokens nor agreement can be judged.
        runtimes: instead of the one that ``options`` and the format choose.
        reference: instead of building one from ``view``; build it once for all artifacts of one model.
        stored_form: compares what is stored with what the config tells a loader.
        progress: told in words what is being done.

    Raises:
        InputError: there is no such folder.
        UsageProblem: a prompt does not fit into the context, or the runtime that was named cannot judge
            such a folder.
        EnvironmentProblem: a runtime that was named is not installed or cannot be started.
    """
    options = options or VerifyOptions()
    if not path.is_dir():
        raise InputError(f"{path.name}: no such folder", hint="Name the folder that holds config.json.")
    say = progress or (lambda _: None)
    about = _About(path.absolute().name, say)
    opened = about.read(path)
    if opened is None:
        about.add(skipped(Check.LOADS, "not tried: the folder cannot be read"))
        return about.report([])
    artifact, stored = opened
    about.add(folder_numbers(artifact, stored))
    if (kept := template_kept(view, artifact.files)) is not None:
        about.add(kept)
    for finding in stored_form(artifact) if stored_form is not None else ():
        about.add(finding)
    named = runtimes is not None or bool(options.runtime) or options.runtime_python is not None
    ran: list[Steps] = []
    for runtime in _chosen(artifact, stored, options, about) if runtimes is None else runtimes:
        steps = Steps(path, view, options, runtime, say, about.subject)
        try:
            steps.plain()
            steps.mtp()
        except EnvironmentProblem as problem:
            if named:
                raise
            about.add(skipped(Check.LOADS, f"{redact(problem.message)} ({problem.hint})"))
            continue
        ran.append(steps)
    if not any(found.check is Check.ENDS for steps in ran for found in steps.findings):
        about.add(_ends(view, artifact))
    for steps in ran:
        reference = steps.judge(reference)
    if view is not None and view.mtp_layers and not artifact.has_head:
        about.add(skipped(Check.MTP_LOADS, "the source has an MTP head, the folder has none"))
    return about.report(ran)


def _ends(view: ModelView | None, artifact: Artifact) -> Finding:
    """Where a reply ends by the folder's own files, for want of a runtime that says it."""
    try:
        source = None if view is None else source_ends(view)
        return judge_ends(source, folder_ends(artifact.files, artifact.config))
    except InputError as error:
        return skipped(Check.ENDS, redact(error.message))


def _chosen(
    artifact: Artifact, stored: LocalCheckpoint, options: VerifyOptions, about: _About
) -> list[Runtime]:
    runtime = choose_runtime(artifact, options)
    if isinstance(runtime, str):
        about.add(skipped(Check.LOADS, runtime))
        return []
    if (short := shortage(runtime.name, artifact, stored)) is not None:
        about.add(skipped(Check.LOADS, str(short), needed=short.needed, available=short.available))
        return []
    return [runtime]


@dataclass
class _About:
    """What is found about the folder itself, whichever runtimes there are."""

    name: str
    say: Progress
    subject: Subject = field(default_factory=Subject)
    findings: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.say(f"{self.name}: {finding.check.value}: {finding.status.value}: {finding.summary}")

    def read(self, path: Path) -> tuple[Artifact, LocalCheckpoint] | None:
        """The folder about itself, opened both ways; ``None`` where it cannot be read."""
        try:
            artifact = open_artifact(path)
            stored = LocalCheckpoint(path, quantized=True)
            self.subject = folder_subject(path, artifact, stored)
        except InputError as error:
            self.add(Finding(Check.FILE, Status.FAIL, redact(str(error))))
            return None
        size, kind = self.subject.size, self.subject.file_type
        words = f"{artifact.family.name} {kind}, {len(stored.tensors)} tensors"
        words += f", {self.subject.bits_per_weight:.2f} bits/weight"
        data = {
            "family": artifact.family.name,
            "kind": artifact.kind.value,
            "file_type": kind,
            "tensors": len(stored.tensors),
            "size": size,
            "shards": len({tensor.file for tensor in stored.tensors.values()}),
            "mtp_layers": artifact.declared_mtp,
            "head": artifact.has_head,
            "chat_template": self.subject.chat_template,
        }
        self.add(Finding(Check.FILE, Status.PASS, words, data))
        return artifact, stored

    def report(self, ran: Sequence[Steps]) -> Report:
        """One report; of several runtimes, every finding says whose it is."""
        findings = list(self.findings)
        for steps in ran:
            name = steps.runtime.name
            findings += [
                found
                if len(ran) == 1
                else replace(found, summary=f"{name}: {found.summary}", data={**found.data, "runtime": name})
                for found in steps.findings
            ]
        return report_of(self.name, self.subject, findings, ran)


def _size(path: Path, stored: LocalCheckpoint) -> int:
    """Bytes of all files that belong to it: weights, configs, tokenizer."""
    small = sum(size for name, size in stored.files.items() if not is_made_here(name))
    return small + sum((path / file).stat().st_size for file in {t.file for t in stored.tensors.values()})


def folder_subject(path: Path, artifact: Artifact, stored: LocalCheckpoint) -> Subject:
    """What a folder says of itself.

    Args:
        path: the folder.
        artifact: the folder as it was opened.
        stored: the same folder, as tensors and small files.

    Raises:
        InputError: its tensors are not those of a model.
    """
    weights = sum(tensor.stop - tensor.start for tensor in stored.tensors.values())
    # An MLX head is in files that the index does not name, or in a folder of its own.
    beside = artifact.details.get("head_outside")
    mine = (t.data.numel for t in artifact.view() if not (beside and t.block is Block.MTP))
    return Subject(
        file_type=folder_type(artifact),
        size=_size(path, stored),
        bits_per_weight=bits_per_weight(weights, sum(mine)),
        chat_template=read_templates(artifact.files, artifact.label).default is not None,
        complete_chats=True,
        context=int(artifact.text.get("max_position_embeddings") or 0),
        # A head beside an MLX trunk is another folder's; one inside is what a runtime could draft with.
        head=artifact.has_head and artifact.kind is not Kind.MLX,
    )
