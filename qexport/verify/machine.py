"""What a speed was measured on, without naming the host: processor, its threads, a GPU where one is seen."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.children.environment import child_environment, search_path

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Machine", "this_machine"]

_PATIENCE_S = 10.0
_BLANK = "unknown processor"


@dataclass(frozen=True)
class Machine:
    """``processors`` counts hardware threads; ``gpu`` is empty where none was seen."""

    cpu: str
    processors: int
    system: str
    gpu: str = ""

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.processors} hardware threads, {self.system}{gpu}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Machine:
        """The machine that :meth:`to_json` gave. Raises KeyError or ValueError for what is none."""
        return cls(
            str(value["cpu"]), int(value["processors"]), str(value["system"]), str(value.get("gpu", ""))
        )


def this_machine() -> Machine:
    """Asks the system; what it does not tell stays unknown."""
    system = f"{platform.system()} {platform.machine()}".strip()
    return Machine(_cpu(), _processors(), system, _gpu())


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() == "model name":
                return " ".join(value.split())
    except (OSError, UnicodeDecodeError):
        pass
    if sys.platform == "darwin":
        return _said(["sysctl", "-n", "machdep.cpu.brand_string"]) or _BLANK
    return platform.processor() or platform.machine() or _BLANK


def _processors() -> int:
    # Those that this process may use: a container has fewer than its host.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _gpu() -> str:
    names = _said(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    if not names:
        return ""
    return f"{len(names)} x {names[0].strip()}" if len(names) > 1 else names[0].strip()


def _said(command: list[str]) -> str:
    """What a program prints; nothing where it is not there or fails."""
    path = search_path(os.environ.get("PATH", os.defpath))  # never one that lies in the current folder
    program = shutil.which(command[0], path=path)
    if program is None:
        return ""
    try:
        ran = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
            env=child_environment(Path.home()),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip()
