"""SGLang on one folder, on a GPU.

Its loaders log tensors that they do not know, and go on with whatever the memory held; the parent reads the
log for that. The scheduler is a process of SGLang's own, in the group that the parent ends.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import sglang


class Loaded:
    """The folder ``request["model"]``, with its MTP head where ``draft_max`` is not 0."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.version = str(sglang.__version__)
        folder = request["model"]
        options: dict[str, Any] = {
            "model_path": folder,
            "trust_remote_code": False,
            "context_length": request["context"],
            "max_running_requests": 1,
            "disable_cuda_graph": True,
            "disable_radix_cache": True,
            "log_level": "warning",
        }
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            quantization = json.load(file).get("quantization_config") or {}
        if quantization.get("quant_method") == "modelopt":
            # On Blackwell another backend would round the activations, too.
            options["moe_runner_backend"] = "marlin"
        self.drafts = request["draft_max"]
        if self.drafts:
            options["speculative_algorithm"] = "NEXTN"
            options["speculative_num_steps"] = self.drafts
            options["speculative_eagle_topk"] = 1
            options["speculative_num_draft_tokens"] = self.drafts + 1
        self.engine = sglang.Engine(**options)
        self.tokenizer = self.engine.tokenizer_manager.tokenizer
        self.facts = {"device": "gpu"}

    def generate(self, ids: list[int], n_predict: int, n_probs: int) -> dict[str, Any]:
        started = time.monotonic()
        out = self._ask(ids, n_predict, return_logprob=bool(n_probs), top_logprobs_num=n_probs)
        seconds = time.monotonic() - started
        meta = out["meta_info"]
        tokens = [int(token) for token in out["output_ids"]]
        if n_probs:
            steps = _steps(meta["output_token_logprobs"], meta["output_top_logprobs"])
        else:
            steps = [[token, None, []] for token in tokens]
        # Each verification has judged as many drafts as were asked for.
        drafted = int(meta.get("spec_verify_ct") or 0) * self.drafts
        return {
            "steps": steps,
            "text": out["text"],
            "stop": "eos" if meta["finish_reason"]["type"] == "stop" else "limit",
            "tok_s": len(tokens) / max(seconds, 1e-9),
            "draft_n": drafted,
            "draft_accepted": round(float(meta.get("spec_accept_rate") or 0.0) * drafted),
        }

    def score(self, ids: list[int], start: int, top: int) -> list[Any]:
        out = self._ask(ids, 1, return_logprob=True, logprob_start_len=0, top_logprobs_num=top)
        meta = out["meta_info"]
        return _steps(meta["input_token_logprobs"], meta["input_top_logprobs"])[start:]

    def _ask(self, ids: list[int], n_predict: int, **options: Any) -> Any:
        greedy = {"temperature": 0, "max_new_tokens": n_predict}
        return self.engine.generate(input_ids=ids, sampling_params=greedy, **options)


def _steps(given: list[Any], tops: list[Any]) -> list[Any]:
    """Its triples (log-probability, id, text) as steps; the first of a prompt has no log-probability."""
    return [
        [int(token), logprob, [[int(other), value] for value, other, _ in top or ()]]
        for (logprob, token, _), top in zip(given, tops)  # noqa: B905
    ]
