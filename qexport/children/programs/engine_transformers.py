"""transformers on one folder, on the CPU: quantized weights are dequantized while it loads them.

Its loader fills what it does not find with random numbers and only logs that, so its own list of missing and
left-over tensors is looked at here: anything on it refuses the folder. The MTP head and the vision tower are
no part of the causal model, and transformers leaves them out of both lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers


class Loaded:
    """The folder ``request["model"]``."""

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

    @torch.inference_mode()
    def tokens(self, ids: list[int], n_predict: int) -> Iterator[tuple[int, Any]]:
        """Greedy by hand: what generation_config.json recommends (sampling, penalties) has no say."""
        tokens, cache = torch.tensor([ids]), None
        for _ in range(n_predict):
            out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            logprobs = torch.log_softmax(out.logits[0, -1].float(), dim=-1)
            token = int(logprobs.argmax())
            yield token, logprobs
            tokens = torch.tensor([[token]])

    @torch.inference_mode()
    def logprobs(self, ids: list[int], start: int) -> Any:
        """Of the tokens from ``start`` on."""
        keep = len(ids) - start + 1
        logits = self.model(torch.tensor([ids]), use_cache=False, logits_to_keep=keep).logits[0, :-1]
        return torch.log_softmax(logits.float(), dim=-1)

    @staticmethod
    def likeliest(logprobs: Any, token: int, top: int) -> list[Any]:
        """The token's own, and the ``top`` likeliest with theirs."""
        best, places = logprobs.topk(min(top, logprobs.shape[-1]))
        return [float(logprobs[token]), [list(pair) for pair in zip(places.tolist(), best.tolist())]]  # noqa: B905
