"""Runs mlx-vlm in an interpreter that has it.

convert    [source, out, options of mlx_vlm.convert]
see        [folder, tokens before, tokens behind]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from child_jobs import answer


class _NoProcessor:
    """The zoo's tokenizers are of no real processor, and tensors need none."""

    def save_pretrained(self, folder: Path) -> None: ...


def convert(source: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    import mlx_vlm.utils
    from mlx_vlm.convert import convert

    mlx_vlm.utils.load_processor = lambda *_, **__: _NoProcessor()
    convert(source, out, **options)
    return {}


def see(folder: str, before: list[int], behind: list[int]) -> dict[str, Any]:
    """Strict loading, and the logits behind three pictures between these tokens, one of them given twice."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten
    from mlx_vlm.utils import load_model

    model = load_model(Path(folder))
    config = model.config
    vision = config.vision_config
    noise = np.random.default_rng(0).standard_normal
    if hasattr(vision, "image_size") and config.model_type == "gemma3":
        count = config.text_config.mm_tokens_per_image
        shape: tuple[int, ...] = (1, 3, vision.image_size, vision.image_size)
        more: dict[str, Any] = {}
    else:
        count = 4
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        shape = (4 * vision.spatial_merge_size**2, patch)
        side = 2 * vision.spatial_merge_size
        more = {"image_grid_thw": mx.array([[1, side, side]])}
    pictures = [mx.array(noise(shape).astype(np.float32)) for _ in range(2)]
    tokens = mx.array([[*before, *[config.image_token_index] * count, *behind]])
    rows = []
    for picture in (pictures[0], pictures[1], pictures[0]):
        out = model(tokens, picture, mask=mx.ones(tokens.shape, mx.int32), **more)
        logits = out.logits if hasattr(out, "logits") else out
        rows.append(np.array(logits[0, -1].astype(mx.float32)))
    names = [name for name, _ in tree_flatten(model.parameters())]
    return {
        "parameters": sorted(names),
        "finite": bool(np.isfinite(rows).all()),
        "same": bool((rows[0] == rows[2]).all()),
        "other": bool((rows[0] != rows[1]).any()),
    }


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # as in engine_mlx_vlm.py
    answer({"convert": convert, "see": see})
