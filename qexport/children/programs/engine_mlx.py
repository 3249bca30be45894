"""mlx-lm on one folder: its own loader (strict: no parameter missing, none too many) and its own generation.

``import mlx_lm`` lowers the process's limit of open files for good, which is one reason for a process of its
own. Log-probabilities are computed in float32 from the model's logits: in bf16 they would be rounded to an
eighth.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.utils import load as load_folder


class Loaded:
    """A model and its tokenizer."""

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
        self.facts["ends"] = sorted(end for end in self.tokenizer.eos_token_ids if end is not None)

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=add_special)]

    def generate(self, ids: list[int], n_predict: int, n_probs: int) -> dict[str, Any]:
        steps: list[Any] = []
        ends = set(self.tokenizer.eos_token_ids)
        started = first = time.monotonic()
        answer = generate_step(
            mx.array(ids),
            self.model,
            max_tokens=n_predict,
            sampler=lambda logprobs: mx.argmax(logprobs, axis=-1),
            logits_processors=[lambda _, logits: logits.astype(mx.float32)],
        )
        stop = "limit"
        for token, logprobs in answer:
            if not steps:
                first = time.monotonic()
            steps.append(
                [int(token), *(_probabilities(logprobs, int(token), n_probs) if n_probs else [None, []])]
            )
            if int(token) in ends:
                stop = "eos"
                break
        done = time.monotonic()
        tokens = [step[0] for step in steps]
        return {
            "steps": steps,
            "text": self.tokenizer.decode(tokens[:-1] if stop == "eos" else tokens),
            "stop": stop,
            "prompt_tok_s": len(ids) / max(first - started, 1e-9),
            "tok_s": (len(steps) - 1) / max(done - first, 1e-9),
        }

    def score(self, ids: list[int], start: int, top: int) -> list[Any]:
        logits = self.model(mx.array(ids)[None])[0, start - 1 : -1].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return [
            [ids[start + at], *_probabilities(logprobs[at], ids[start + at], top)]
            for at in range(len(ids) - start)
        ]


def _probabilities(logprobs: Any, token: int, top: int) -> list[Any]:
    """The token's own, and the ``top`` likeliest with theirs."""
    likeliest: Any = mx.argsort(-logprobs)[:top].tolist()
    return [float(logprobs[token]), [[int(other), float(logprobs[other])] for other in likeliest]]


def load(request: dict[str, Any]) -> Loaded:
    """Load the folder ``request["model"]``."""
    return Loaded(request)
