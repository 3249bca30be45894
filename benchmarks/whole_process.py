"""What a benchmark measures of a command: seconds, seconds of processors, peak memory."""

from __future__ import annotations

import os
import subprocess
import time

__all__ = ["measured", "timed"]


def measured(command: list[str], **env: str) -> tuple[float, float, float]:
    """Seconds, seconds of processors, and peak resident MiB of one command."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {' '.join(command)}")
    busy = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - start, busy, usage.ru_maxrss / 1024


def timed(command: list[str], **env: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of one command."""
    seconds, _, peak = measured(command, **env)
    return seconds, peak
