"""transformers on one folder, on the CPU: quantized weights are dequantized while it loads them.

Its loader fills what it does not find with random numbers and only logs that, so its own list of missing and
left-over tensors is looked at here: anything on it refuses the folder. The MTP head and the vision tower are
no part of the causal model, and transformers leaves them out of both lists.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers


class Loaded:
    """A model and its tokenizer."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.version = str(transformers.__version__)
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        folder = request["model"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
        self.model.eval()
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = sorted(str(name) for name in info.get(kind) or ())
            if names:
                raise ValueError(f"{len(names)} {kind.replace('_', ' ')}, the first {names[0]}")
        self.facts = {
            "strict": True,
            "parameters": sum(1 for _ in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
        }
        ends = self.model.generation_config.eos_token_id
        self.ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        self.facts["ends"] = sorted(self.ends)

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=add_special)]

    def generate(self, ids: list[int], n_predict: int, n_probs: int) -> dict[str, Any]:
        """Greedy by hand: what generation_config.json recommends (sampling, penalties) has no say."""
        steps: list[Any] = []
        started = first = time.monotonic()
        tokens, cache, stop = torch.tensor([ids]), None, "limit"
        with torch.inference_mode():
            for _ in range(n_predict):
                out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                logprobs = torch.log_softmax(out.logits[0, -1].float(), dim=-1)
                token = int(logprobs.argmax())
                if not steps:
                    first = time.monotonic()
                steps.append([token, *(_probabilities(logprobs, token, n_probs) if n_probs else [None, []])])
                if token in self.ends:
                    stop = "eos"
                    break
                tokens = torch.tensor([[token]])
        done = time.monotonic()
        chosen = [step[0] for step in steps]
        return {
            "steps": steps,
            "text": self.tokenizer.decode(chosen[:-1] if stop == "eos" else chosen),
            "stop": stop,
            "prompt_tok_s": len(ids) / max(first - started, 1e-9),
            "tok_s": (len(steps) - 1) / max(done - first, 1e-9),
        }

    def score(self, ids: list[int], start: int, top: int) -> list[Any]:
        with torch.inference_mode():
            keep = len(ids) - start + 1
            logits = self.model(torch.tensor([ids]), use_cache=False, logits_to_keep=keep).logits[0, :-1]
            logprobs = torch.log_softmax(logits.float(), dim=-1)
        return [
            [ids[start + at], *_probabilities(logprobs[at], ids[start + at], top)]
            for at in range(len(ids) - start)
        ]


def _probabilities(logprobs: Any, token: int, top: int) -> list[Any]:
    """The token's own, and the ``top`` likeliest with theirs."""
    best, places = logprobs.topk(min(top, logprobs.shape[-1]))
    return [float(logprobs[token]), [list(pair) for pair in zip(places.tolist(), best.tolist())]]  # noqa: B905


def load(request: dict[str, Any]) -> Loaded:
    """Load the folder ``request["model"]``."""
    return Loaded(request)
