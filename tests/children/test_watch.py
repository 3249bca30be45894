"""The watcher of a child sleeps: work is done when something ends, and when memory could have run out."""

import subprocess
import sys
from pathlib import Path

import pytest

from qexport.children.programs import watch

COUNTED = """
import os, sys
sys.path.insert(0, {folder!r})
import watch
counts = {{"weighed": 0, "rested": 0}}
def counted(key, real):
    def call(*given):
        counts[key] += 1
        return real(*given)
    return call
watch._taken = counted("weighed", watch._taken)
{without}
sleeper = watch._sleeper
watch._sleeper = lambda *each: counted("rested", sleeper(*each))
program = "import time; time.sleep(1.2); raise SystemExit(7)"
sys.argv = ["watch", str(os.getppid()), {limit!r}, sys.executable, "-c", program]
try:
    watch.main()
finally:
    print(counts["weighed"], counts["rested"])
"""
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def watched(limit: float, without: str = "") -> tuple[int, int]:
    code = COUNTED.format(folder=str(Path(watch.__file__).parent), limit=str(int(limit)), without=without)
    # A group of its own, as every watcher has: else the tests' is weighed, and killed.
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, process_group=0
    )
    assert ran.returncode == 7, ran.stderr
    weighed, rested = map(int, ran.stdout.split())
    return weighed, rested


@LINUX
def test_it_sleeps_until_something_ends():
    assert watched(0) == (0, 1)


@LINUX
def test_memory_is_weighed_the_rarer_the_more_is_left():
    much, little = watched(64e9), watched(1e9)  # which could be full in a moment
    assert much[0] >= 1
    assert 2 * much[0] < little[0]


@LINUX
def test_where_the_system_does_not_tell_it_looks_now_and_then():
    assert watched(0, without="del os.pidfd_open")[1] > 5
