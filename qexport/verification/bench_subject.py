"""What is to be timed, and in which runtime: one that people serve this format with.

transformers is none: it turns quantized weights back into bf16, so its speed says nothing of the artifact.
mlx-lm runs no MTP heads, vLLM and SGLang do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.layout import OnDisk
from qexport.errors import InputError, UsageProblem
from qexport.formats.opening import layout_of
from qexport.verification.choose import can_judge
from qexport.verification.folder_runtimes import folder_runtime
from qexport.verification.runtimes import llama_cpp

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.description import Description
    from qexport.verification.options import VerifyOptions
    from qexport.verification.runtime import Runtime


_NO_SPEED = "transformers"


def bench_subject(path: Path, options: VerifyOptions) -> tuple[Description, Runtime]:
    """What the artifact says of itself, and what runs it: the runtime that was named, or the format's own.

    Raises:
        InputError: there is no artifact, or one that cannot run by itself.
        UsageProblem: no runtime here, or not the one that was named, times this format.
    """
    found = OnDisk(path)
    about = layout_of(found).describe(found)
    if about.alone:
        raise InputError(f"{path.name} is an MTP head alone: it cannot answer by itself")
    if about.artifact is not None:
        return about, folder_runtime(_runtime(about.artifact, options), options.runtime_python)
    if options.runtime:
        raise UsageProblem(
            f"{options.runtime} does not run GGUF files", hint="llama.cpp does: leave --runtime out."
        )
    return about, llama_cpp(options.llama_server)


def _runtime(artifact: Opened, options: VerifyOptions) -> str:
    if options.llama_server is not None:
        raise UsageProblem(f"{artifact.label} is no GGUF file, which is what a llama-server runs")
    layout = artifact.layout
    serves_here = layout.here in layout.served
    name = options.runtime or (layout.served[0] if serves_here or options.runtime_python is not None else "")
    if not name:
        raise UsageProblem(
            f"{artifact.label} is served by vLLM, which is not named",
            hint="Add --runtime-python ~/vllm/bin/python, a Python that has it.",
        )
    if name == _NO_SPEED:
        raise UsageProblem(
            "transformers turns quantized weights back into bf16: its speed says nothing of the artifact",
            hint="Name vllm, sglang or mlx-lm.",
        )
    if reason := can_judge(name, artifact):
        raise UsageProblem(f"{artifact.label} cannot be timed by {name}: {reason}")
    return name
