"""The loop of the programs here that run in an interpreter of their own: jobs in, a line of results out."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def answer(known: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Do what the command line names for each job on stdin; one that fails is ``{"error": ...}``."""
    warnings.simplefilter("ignore")
    work = known[sys.argv[1]]
    results: list[dict[str, Any]] = []
    for job in json.load(sys.stdin):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                results.append(work(*job))
        except Exception as error:  # noqa: BLE001 the parent judges
            results.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(results))
