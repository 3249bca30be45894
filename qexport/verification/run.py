"""Verify an artifact: what it says of itself and what is stored, then what a runtime makes of it.

Loaders do not check what matters most (is every module stored as the config tells them?), so that is asked
first, by us (``stored_form``). Hardly any runtime runs an MTP head without a GPU; what the head is worth is
measured apart, by one engine for all formats (:mod:`qexport.verification.comparison`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.description import Description
from qexport.artifacts.layout import OnDisk
from qexport.children.redact import redact
from qexport.errors import EnvironmentProblem, InputError
from qexport.formats.opening import layout_of, open_artifact
from qexport.onepass.files import silent
from qexport.receipt.verification import Check, Status, Verdict, Verification
from qexport.verification.choose import choose_runtime
from qexport.verification.conversation import folder_ends, judge_ends, source_ends, template_kept
from qexport.verification.input_scales import check_input_scales, recorded
from qexport.verification.judge import skipped
from qexport.verification.memory import shortage
from qexport.verification.options import VerifyOptions
from qexport.verification.readers import check_readers
from qexport.verification.runtimes import llama_cpp
from qexport.verification.source_weights import check_weights, rounded_alone
from qexport.verification.steps import Say, Steps
from qexport.verification.stored_form import check_stored_form
from qexport.verification.stored_numbers import check_numbers
from qexport.verification.twin import TWIN, has_twins, twin_of

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.families.view import ModelView
    from qexport.verification.reference import Reference
    from qexport.verification.runtime import Runtime


def verify(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions | None = None,
    runtime: Runtime | None = None,
    reference: Reference | None = None,
    progress: Say | None = None,
) -> Verification:
    """Judge the artifact at ``path``: a GGUF file (any of its shards), or a folder of any layout.

    Args:
        view: the repaired source; without it neither tokens nor agreement can be judged.
        runtime: instead of what ``options`` and the layout choose.
        reference: instead of building one from ``view``; build it once for all artifacts of one model.
        progress: told in words what is being done.

    Raises:
        InputError: there is nothing.
        UsageProblem: a prompt fits neither into the context asked for nor into the model's own, or the
            runtime that was named cannot judge such a folder.
        EnvironmentProblem: the runtime is not installed or cannot be started: that of a file, or of a folder
            one that was named.
    """
    options = options or VerifyOptions()
    if not path.exists():
        hint = "Name a .gguf file, or the folder that holds config.json."
        raise InputError(f"{path.name}: no such file or folder", hint=hint)
    found = OnDisk(path)
    steps = Steps(Description(path), view, options, progress or silent)
    readable = _read(steps, found)
    about, artifact = steps.about, steps.about.artifact
    if not readable and not found.is_file:
        steps.add(skipped(Check.LOADS, "not tried: the folder cannot be read"))
        return steps.report()
    if about.alone:
        words = "an MTP head alone: it drafts for another file and cannot answer itself"
        steps.add(skipped(Check.LOADS, words))
        return steps.report()
    chosen = runtime or _chosen(artifact, found, options)
    with ExitStack() as stack:
        if isinstance(chosen, str) and artifact is not None:
            chosen = _by_twin(steps, artifact, chosen, stack)
        if isinstance(chosen, Verdict | str):
            steps.add(chosen if isinstance(chosen, Verdict) else skipped(Check.LOADS, chosen))
        else:
            try:
                steps.run(chosen)
            except EnvironmentProblem as problem:
                named = runtime is not None or bool(options.runtime) or options.runtime_python is not None
                if named or artifact is None:
                    raise
                steps.add(skipped(Check.LOADS, f"{redact(problem.message)} ({problem.hint})"))
        if artifact is not None and not any(each.check is Check.ENDS for each in steps.findings):
            steps.add(_ends(view, artifact))
        if readable and view is not None and view.mtp_layers and not about.has_head:
            steps.add(_headless(about, "the file" if found.is_file else "the folder"))
        steps.judge(reference)  # a twin's files are looked at, too
    return steps.report()


def _headless(about: Description, here: str) -> Verdict:
    words = f"the source has an MTP head, {here} has none"
    if about.strange_head:
        return Verdict(Check.MTP_LOADS, Status.FAIL, f"{words}; {redact(about.strange_head)}")
    return skipped(Check.MTP_LOADS, words)


def _read(steps: Steps, found: OnDisk) -> bool:
    """The artifact about itself. A broken file is still given to the runtime: what do users see?"""
    try:
        about = layout_of(found).describe(found)
    except InputError as error:
        if found.is_file:
            steps.about = Description(found.path, files={found.path.name: found.path.stat().st_size})
        steps.add(Verdict(Check.FILE, Status.FAIL, redact(error.message if found.is_file else str(error))))
        return False
    steps.about = about
    words = (
        f"{about.model} {about.file_type}, {about.tensors} tensors, {about.bits_per_weight:.2f} bits/weight"
    )
    data = {
        **about.facts,
        "file_type": about.file_type,
        "tensors": about.tensors,
        "size": steps.size,
        "shards": about.shards,
        "chat_template": about.chats,
    }
    fault = Verdict(Check.FILE, Status.FAIL, about.fault)
    steps.add(fault if about.fault else Verdict(Check.FILE, Status.PASS, words, data))
    steps.add(check_numbers(about.numbers()))
    if not about.alone and (kept := template_kept(steps.view, about.templates)) is not None:
        steps.add(kept)
    for finding in () if about.artifact is None else check_stored_form(about.artifact):
        steps.add(finding)
    if about.artifact is not None and not found.is_file:
        scaled = check_input_scales(about.artifact, recorded(found.path))
        if scaled is not None:
            steps.add(scaled)
    if (read := check_readers(about.packed())) is not None:
        steps.add(read)
    if steps.view is not None and not about.alone:
        steps.progress(f"{steps.name}: comparing {steps.size / 1e9:.2f} GB with the source's weights")
        if (beside := _weights(found.path, about, steps.view)) is not None:
            steps.add(beside)
    return True


def _weights(path: Path, about: Description, source: ModelView) -> Verdict | None:
    """What is stored beside the source's; of a file, whose tensors are told by the source's alone."""
    try:
        artifact = about.artifact or open_artifact(path, like=source)
    except InputError as error:
        return skipped(Check.WEIGHTS, redact(error.message))
    return check_weights(artifact, source, rounded=rounded_alone(path))


def _chosen(artifact: Opened | None, found: OnDisk, options: VerifyOptions) -> Runtime | Verdict | str:
    """A runtime; or why there is none, as a text where a twin may stand in."""
    if artifact is None:
        return llama_cpp(options.llama_server)
    if options.runtime == TWIN:
        return "its GGUF twin was not run (llama.cpp comes with pip install 'qexport[llama]')"
    runtime = choose_runtime(artifact, options)
    if isinstance(runtime, str):
        return runtime
    if (short := shortage(runtime.name, artifact, found.folder)) is not None:
        return skipped(Check.LOADS, str(short), needed=short.needed, available=short.available)
    return runtime


def _by_twin(steps: Steps, artifact: Opened, why: str, stack: ExitStack) -> Runtime | str:
    """The folder's twin, or why there is neither that nor a runtime."""
    if not has_twins(steps.options):
        return why
    twin, finding = stack.enter_context(twin_of(artifact, steps.options, steps.progress))
    steps.add(finding)
    if twin is not None:  # a format whose own runtimes do not draft may have a head
        steps.about = replace(steps.about, drafts=steps.about.has_head)
    return twin or why


def _ends(view: ModelView | None, artifact: Opened) -> Verdict:
    """Where a reply ends by the folder's own files, for want of a runtime that says it."""
    try:
        source = None if view is None else source_ends(view)
        return judge_ends(source, folder_ends(artifact.files, artifact.config))
    except InputError as error:
        return skipped(Check.ENDS, redact(error.message))
