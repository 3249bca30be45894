"""Runs mlx-lm in a process of its own: importing it lowers the limit on open files, and errors may end it.

convert    [source, out, options of mlx_lm.convert]; ``by_path`` is what its predicate says of each module
load       [folder, prompt, tokens]
logits     [folder, tokens]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from child_jobs import answer


def convert(source: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    from mlx_lm.convert import convert

    if (by_path := options.pop("by_path", None)) is not None:
        options["quant_predicate"] = lambda path, _: by_path.get(path, False)
    convert(source, out, quantize=True, **options)
    return {}


def load(folder: str, prompt: str, tokens: int) -> dict[str, Any]:
    """Strict loading, greedy text, and names, dtypes and bits of what was loaded."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm import generate, load

    model, tokenizer = load(folder)
    text = generate(model, tokenizer, prompt=prompt, max_tokens=tokens)
    parameters = dict(tree_flatten(model.parameters()))
    bits = {path: m.bits for path, m in model.named_modules() if hasattr(m, "bits")}
    finite = all(bool(mx.isfinite(v).all()) for v in parameters.values() if v.dtype != mx.uint32)
    return {"text": text, "parameters": len(parameters), "bits": bits, "finite": finite}


def logits(folder: str, tokens: list[int]) -> dict[str, Any]:
    """The last position's logits."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    return {"logits": model(mx.array([tokens]))[0, -1].astype(mx.float32).tolist()}


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # as in engine_mlx.py
    answer({"convert": convert, "load": load, "logits": logits})
