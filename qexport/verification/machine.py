"""What a speed was measured on, without naming the host: processor, its threads, a GPU where one is seen."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from qexport.children.environment import child_environment, search_path
from qexport.receipt.speeds import Machine

_PATIENCE_S = 10.0
_BLANK = "unknown processor"


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
