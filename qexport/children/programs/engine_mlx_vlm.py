"""mlx-vlm on one folder, with its vision tower: its own loader (strict, as mlx-lm's) and its own generation.

Its processors need Pillow and more, so pictures come prepared; the tokenizer is transformers'. As in the
engine of mlx-lm log-probabilities are float32's, on a CPU all numbers are, and the tower's are everywhere:
what it makes of a picture is compared number by number.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "torch" not in sys.modules:
    # transformers imports torch where it finds it, for three quarters of the time that all of this takes; MLX
    # needs none of it.
    sys.modules["torch"] = None  # type: ignore[assignment]

import mlx.core as mx
import mlx_vlm
import numpy as np
import transformers
from mlx.utils import tree_flatten
from mlx_vlm.generate import generate_step
from mlx_vlm.utils import load_model


class Loaded:
    """The folder ``request["model"]``."""

    def __init__(self, request: dict[str, Any]) -> None:
        folder = Path(request["model"])
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            if json.load(file).get("model_file"):  # which mlx-vlm runs
                raise ValueError("its config.json names a Python file of its own to be run")
        self.version = str(mlx_vlm.__version__)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = load_model(folder)
        self._projector = getattr(self.model, "multi_modal_projector", None)
        if mx.default_device().type == mx.DeviceType.cpu:
            self.model.set_dtype(mx.float32)
        for part in (self.model.vision_tower, self._projector):
            if part is not None:
                part.set_dtype(mx.float32)
        ends = self.model.config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        self.facts = {
            "strict": True,
            "sees": True,
            "parameters": len(tree_flatten(self.model.parameters())),
            "device": str(mx.default_device()),
            "ends": sorted(self.ends),
        }

    def tokens(
        self, ids: list[int], n_predict: int, picture: dict[str, Any] | None = None, image_token: int = -1
    ) -> Iterator[tuple[int, Any]]:
        """One after the other, each with the log-probabilities that it was chosen by."""
        pixels, grid = (None, {}) if picture is None else _inputs(picture)
        tokens = mx.array([ids])
        answer = generate_step(
            tokens,
            self.model,
            pixels,
            mx.ones(tokens.shape, mx.int32),
            max_tokens=n_predict,
            sampler=lambda logprobs: mx.argmax(logprobs, axis=-1),
            logits_processors=[lambda _, logits: logits.astype(mx.float32)],
            **grid,
        )
        return ((int(token), logprobs) for token, logprobs in answer)

    def logprobs(self, ids: list[int], start: int) -> Any:
        """Of the tokens from ``start`` on."""
        out = self.model(mx.array(ids)[None], None)
        logits = getattr(out, "logits", out)[0, start - 1 : -1].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def embed(self, picture: dict[str, Any]) -> dict[str, Any]:
        """A row for each token, float32, with what goes into deeper layers behind it, where anything does."""
        pixels, grid = _inputs(picture)
        if self._projector is None:
            rows, deeper = self.model.vision_tower(pixels, grid["image_grid_thw"])
        else:
            hidden, _, _ = self.model.vision_tower(pixels.transpose(0, 2, 3, 1), output_hidden_states=True)
            rows, deeper = self._projector(hidden)[0], []
        whole = np.array(mx.concatenate([rows, *deeper], axis=-1).astype(mx.float32))
        return {"tokens": len(whole), "rows": base64.b64encode(whole.tobytes()).decode()}

    @staticmethod
    def likeliest(logprobs: Any, token: int, top: int) -> list[Any]:
        """The token's own, and the ``top`` likeliest with theirs."""
        best: Any = mx.argsort(-logprobs)[:top].tolist()
        return [float(logprobs[token]), [[int(other), float(logprobs[other])] for other in best]]


def _inputs(picture: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The pixels, and what else the model is told of them."""
    found = {
        name: mx.array(np.frombuffer(base64.b64decode(each["data"]), each["dtype"]).reshape(each["shape"]))
        for name, each in picture["inputs"].items()
    }
    return found.pop("pixel_values"), found
