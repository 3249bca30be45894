"""What is to be timed, and in which runtime: one that people serve this format with.

transformers is none: it turns quantized weights back into bf16, so its speed says nothing of the artifact.
mlx-lm runs no MTP heads, vLLM and SGLang do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.artifact import Kind
from qexport.artifacts.opening import open_artifact
from qexport.checkpoint.local import LocalCheckpoint
from qexport.container.gguf_file import read_gguf, shard_paths
from qexport.errors import InputError, UsageProblem
from qexport.verify.choose import can_judge
from qexport.verify.folder_runtimes import folder_runtime
from qexport.verify.run import gguf_subject
from qexport.verify.run_folder import folder_subject
from qexport.verify.runtimes import LlamaServer, Xllamacpp

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Artifact
    from qexport.verify.runtime import Runtime
    from qexport.verify.steps import Subject


_NO_SPEED = "transformers"


@dataclass(frozen=True)
class Choice:
    """The runtime that the user names; the format's own where nothing is named.

    Attributes:
        llama_server: for GGUF files, instead of the one inside xllamacpp.
        runtime: for folders: ``mlx-lm``, ``vllm`` or ``sglang``.
        python: the Python that has it.
    """

    llama_server: Path | None = None
    runtime: str = ""
    python: Path | None = None


def bench_subject(path: Path, choice: Choice) -> tuple[Path, Subject, Runtime]:
    """The path to load (the first shard), what it says of itself, and what runs it.

    Raises:
        InputError: there is no artifact, or one that cannot run by itself.
        UsageProblem: no runtime here, or not the one that was named, times this format.
    """
    if path.is_file():
        info = read_gguf(shard_paths(path)[0])
        if info.head_only:
            raise InputError(f"{path.name} is an MTP head alone: it cannot answer by itself")
        if choice.runtime:
            raise UsageProblem(
                f"{choice.runtime} does not run GGUF files", hint="llama.cpp does: leave --runtime out."
            )
        server = choice.llama_server
        return (
            shard_paths(path)[0],
            gguf_subject(info),
            Xllamacpp() if server is None else LlamaServer(server),
        )
    artifact = open_artifact(path)
    subject = folder_subject(path, artifact, LocalCheckpoint(path, quantized=True))
    return path, subject, folder_runtime(_runtime(artifact, choice), choice.python)


def _runtime(artifact: Artifact, choice: Choice) -> str:
    if choice.llama_server is not None:
        raise UsageProblem(f"{artifact.label} is no GGUF file, which is what a llama-server runs")
    name = choice.runtime or ("mlx-lm" if artifact.kind is Kind.MLX else "vllm" if choice.python else "")
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
