"""Verify one GGUF: ask what it says of itself, run it, and judge what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qexport.children.redact import redact
from qexport.container.gguf_file import GgufInfo, read_gguf, shard_paths
from qexport.errors import InputError
from qexport.receipt.verification import Check, Finding, Report, Status
from qexport.verify.conversation import gguf_template
from qexport.verify.judge import skipped
from qexport.verify.options import VerifyOptions
from qexport.verify.runtimes import LlamaServer, Xllamacpp
from qexport.verify.steps import Progress, Steps, Subject
from qexport.verify.stored_numbers import gguf_numbers

if TYPE_CHECKING:
    from qexport.families.view import ModelView
    from qexport.verify.reference import Reference
    from qexport.verify.runtime import Runtime


def verify_gguf(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions | None = None,
    runtime: Runtime | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run the GGUF at ``path`` (any of its shards) and judge it.

    Args:
        view: the repaired source; without it neither tokens nor agreement can be judged.
        runtime: instead of what ``options`` choose.
        reference: instead of building one from ``view``; build it once for all files of one model.
        progress: told in words what is being done.

    Raises:
        InputError: there is no such file.
        UsageProblem: a prompt fits neither into the context asked for nor into the model's own.
        EnvironmentProblem: the runtime is not installed or cannot be started.
    """
    options = options or VerifyOptions()
    if not path.is_file():
        raise InputError(f"{path.name}: no such file", hint="Name a .gguf file.")
    if runtime is None:
        runtime = Xllamacpp() if options.llama_server is None else LlamaServer(options.llama_server)
    first = shard_paths(path)[0]
    steps = Steps(first, view, options, runtime, progress or (lambda _: None))
    info = _read_file(steps)
    if info is not None:
        steps.add(gguf_numbers(first, info))
        if not info.head_only and (kept := gguf_template(view, info.metadata)) is not None:
            steps.add(kept)
    if info is not None and info.head_only:
        words = "an MTP head alone: it drafts for another file and cannot answer itself"
        steps.add(skipped(Check.LOADS, words))
        return steps.report()
    steps.plain()
    if info is not None and not info.nextn_layers and view is not None and view.mtp_layers:
        steps.add(skipped(Check.MTP_LOADS, "the source has an MTP head, the file has none"))
    steps.mtp()
    steps.judge(reference)
    return steps.report()


def gguf_subject(info: GgufInfo) -> Subject:
    """What a GGUF says of itself."""
    return Subject(
        file_type=info.file_type,
        size=info.size,
        bits_per_weight=info.bits_per_weight,
        chat_template=bool(info.chat_template),
        context=info.context_length,
        head=bool(info.nextn_layers),
    )


def _read_file(steps: Steps) -> GgufInfo | None:
    """The file about itself. A broken one is still given to the runtime: what do users see?"""
    try:
        info = read_gguf(steps.path)
    except InputError as error:
        steps.subject = Subject(size=steps.path.stat().st_size)
        steps.add(Finding(Check.FILE, Status.FAIL, redact(error.message)))
        return None
    steps.subject = gguf_subject(info)
    if info.nextn_layers and not info.head_tensors:
        words = f"it declares {info.nextn_layers} MTP layer(s) and holds none of their tensors"
        steps.add(Finding(Check.FILE, Status.FAIL, words))
        return info
    words = f"{info.architecture} {info.file_type}, {len(info.tensors)} tensors"
    words += f", {info.bits_per_weight:.2f} bits/weight"
    data = {
        "architecture": info.architecture,
        "file_type": info.file_type,
        "tensors": len(info.tensors),
        "size": info.size,
        "shards": info.shards,
        "nextn_layers": info.nextn_layers,
        "chat_template": info.chat_template,
    }
    steps.add(Finding(Check.FILE, Status.PASS, words, data))
    return info
