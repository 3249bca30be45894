"""``params``: sampling defaults, in a repository with GGUF files, for ``ollama run hf.co/org/name``.

The Hub hands the file to Ollama (https://huggingface.co/docs/hub/ollama); the chat template is made there of
the one inside the GGUF file. Keys: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx (PARAMETER).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.receipt.types import Artifact


PARAMS_NAME = "params"
_KEYS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
}


def ollama_params(artifacts: Iterable[Artifact]) -> bytes | None:
    """The file; ``None`` where there is no GGUF file, or the model recommends nothing."""
    recommended = (a.source.about.sampling for a in artifacts if a.kind == "gguf")
    found = next((sampling for sampling in recommended if sampling), None)
    if found is None:
        return None
    said = {_KEYS[key]: _number(value) for key, value in found.items() if key in _KEYS}
    return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()


def _number(value: float) -> float:
    """``top_k`` is a count."""
    return int(value) if value == int(value) and value > 1 else value
