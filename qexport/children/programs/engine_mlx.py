"""mlx-lm on one folder: its own loader (strict: no parameter missing, none too many) and its own generation.

``import mlx_lm`` lowers the process's limit of open files for good, which is one reason for a process of its
own. Log-probabilities are computed in float32 from the model's logits: in bf16 they would be rounded to an
eighth.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

if "torch" not in sys.modules:
    # transformers imports torch where it finds it, for three quarters of the time that all of this takes; MLX
    # needs none of it.
    sys.modules["torch"] = None  # type: ignore[assignment]

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.utils import load as load_folder


class Loaded:
    """The folder ``request["model"]``."""

    def __init__(self, request: dict[str, Any]) -> None:
        with open(os.path.join(request["model"], "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            if json.load(file).get("model_file"):
                # mlx-lm before 0.32 runs it without asking.
                raise ValueError("its config.json names a Python file of its own to be run")
        self.version = str(mlx_lm.__version__)
        self.model, self.tokenizer = load_folder(
            request["model"], tokenizer_config={"trust_remote_code": False}
        )
        if mx.default_device().type == mx.DeviceType.cpu:
            # The stored numbers stay what they are. In bf16 the CPU's kernels add an error of their own: on a
            # trained model 0.07 nats a token where 8 bits cost 0.005, the same for 5 bits as for 8.
            self.model.set_dtype(mx.float32)
        names = [name for name, _ in tree_flatten(self.model.parameters())]
        self.facts = {"strict": True, "parameters": len(names), "device": str(mx.default_device())}
        self.ends = {end for end in self.tokenizer.eos_token_ids if end is not None}
        self.facts["ends"] = sorted(self.ends)

    def tokens(self, ids: list[int], n_predict: int) -> Iterator[tuple[int, Any]]:
        """One after the other, each with the log-probabilities that it was chosen by."""
        answer = generate_step(
            mx.array(ids),
            self.model,
            max_tokens=n_predict,
            sampler=lambda logprobs: mx.argmax(logprobs, axis=-1),
            logits_processors=[lambda _, logits: logits.astype(mx.float32)],
        )
        return ((int(token), logprobs) for token, logprobs in answer)

    def logprobs(self, ids: list[int], start: int) -> Any:
        """Of the tokens from ``start`` on."""
        logits = self.model(mx.array(ids)[None])[0, start - 1 : -1].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    @staticmethod
    def likeliest(logprobs: Any, token: int, top: int) -> list[Any]:
        """The token's own, and the ``top`` likeliest with theirs."""
        best: Any = mx.argsort(-logprobs)[:top].tolist()
        return [float(logprobs[token]), [[int(other), float(logprobs[other])] for other in best]]
