"""From ``--prompt``, ``--tokens`` and the like to the value that verification takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qexport.verify.options import VerifyOptions

_NAMES = {
    "tokens": "n_predict",
    "draft_max": "draft_max",
    "timeout": "time_limit",
    "llama_server": "llama_server",
    "threads": "threads",
    "runtime": "runtime",
    "runtime_python": "runtime_python",
}


def verify_options_from(given: dict[str, Any]) -> VerifyOptions:
    """Options that were given replace the defaults; the rest stay."""
    chosen = {field: given[name] for name, field in _NAMES.items() if given.get(name) is not None}
    if given.get("prompt"):
        chosen["prompts"] = tuple(given["prompt"])
    return replace(VerifyOptions(), **chosen)
