"""Nothing is imported from the folder that the user happens to be in.

``python -m`` and an empty or relative part of ``PYTHONPATH`` put it on Python's search path. A ``torch.py``
beside a downloaded model would then be run. The ``qexport`` command does not look there anyway.
"""

from __future__ import annotations

import os
import sys


def without_current_folder() -> None:
    """Take the current folder, and what is relative to it, off the search path, unless qexport lies in it."""
    home = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
    try:
        here = os.path.realpath(os.getcwd())  # noqa: PTH109
    except OSError:  # it was removed
        here = ""
    kept = [part for part in sys.path if os.path.isabs(part) and os.path.realpath(part) != here]  # noqa: PTH117
    sys.path[:] = [home, *kept] if here == home and home not in kept else kept
