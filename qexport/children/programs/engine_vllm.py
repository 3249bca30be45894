"""vLLM on one folder, strictly: every parameter has to come out of the checkpoint.

For quantized models vLLM does not check that unless it is told to (``enable_weights_track``): a head that is
missing, or stored in another form than the config says, is loaded in silence and drafts garbage. One class of
names is let off: activation scales of FP4 layers in weight-only models, which have none.
https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/model_loader/default_loader.py

On a CPU the head is loaded and checked, but cannot draft: that needs a Triton with a CPU backend.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

# Read when vLLM is imported. One process: an exception reaches us, and the parent's signal all of it.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import vllm
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

_MOST_PROBS = 20


class Loaded:
    """The folder ``request["model"]``, with its MTP head where ``draft_max`` is not 0."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.version = str(vllm.__version__)
        folder, drafts = request["model"], request["draft_max"]
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            config = json.load(file)
        let_off(config)
        options: dict[str, Any] = {
            "model": folder,
            "trust_remote_code": False,
            "dtype": "bfloat16",
            "enforce_eager": True,
            "max_model_len": request["context"],
            "max_num_seqs": 1,
            "max_num_batched_tokens": max(request["context"], 2048),
            "max_logprobs": _MOST_PROBS,
            "disable_log_stats": False,
            "enable_prefix_caching": False,
            "model_loader_extra_config": {"enable_weights_track": True},
        }
        if "ConditionalGeneration" in str(config.get("architectures")):
            options["language_model_only"] = True
        if drafts:
            options["speculative_config"] = {"method": "mtp", "num_speculative_tokens": drafts}
        self.llm = vllm.LLM(**options)
        self.tokenizer = self.llm.get_tokenizer()
        cpu = current_platform.is_cpu()
        self.runs = not (drafts and cpu)
        self.facts = {"strict": True, "device": "cpu" if cpu else current_platform.get_device_name()}
        if not self.runs:
            self.facts["no_drafts"] = "vLLM's CPU build loads and checks the head, but cannot draft with it"

    def generate(self, ids: list[int], n_predict: int, n_probs: int) -> dict[str, Any]:
        before = self._drafted()
        started = time.monotonic()
        out = self._ask(ids, max_tokens=n_predict, logprobs=min(n_probs, _MOST_PROBS) or None)
        seconds = time.monotonic() - started
        answer = out.outputs[0]
        tokens = [int(token) for token in answer.token_ids]
        probabilities = answer.logprobs if n_probs else None
        steps = [
            [token, *(_probabilities(probabilities[at], token) if probabilities else [None, []])]
            for at, token in enumerate(tokens)
        ]
        drafted = [now - then for now, then in zip(self._drafted(), before)]  # noqa: B905
        return {
            "steps": steps,
            "text": answer.text,
            "stop": "eos" if answer.finish_reason == "stop" else "limit",
            # With the prompt's time in it: vLLM's own split is not part of its answers.
            "tok_s": len(tokens) / max(seconds, 1e-9),
            "draft_n": drafted[0],
            "draft_accepted": drafted[1],
        }

    def score(self, ids: list[int], start: int, top: int) -> list[Any]:
        out = self._ask(ids, max_tokens=1, prompt_logprobs=min(top, _MOST_PROBS))
        return [[ids[at], *_probabilities(out.prompt_logprobs[at], ids[at])] for at in range(start, len(ids))]

    def _ask(self, ids: list[int], **options: Any) -> Any:
        if not self.runs:
            raise RuntimeError(self.facts["no_drafts"])
        greedy = vllm.SamplingParams(temperature=0, seed=1, **options)
        return self.llm.generate([{"prompt_token_ids": ids}], greedy, use_tqdm=False)[0]

    def _drafted(self) -> tuple[int, int]:
        """Tokens drafted and accepted since the start."""
        counts = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
        drafted, accepted = (int(counts.get(name, 0)) for name in names)
        return drafted, accepted


def _probabilities(given: Any, token: int) -> list[Any]:
    """The token's own, and the likeliest with theirs, likeliest first."""
    order = sorted(given.items(), key=lambda pair: -pair[1].logprob)
    return [given[token].logprob, [[int(other), value.logprob] for other, value in order]]


def _weight_only(config: dict[str, Any]) -> bool:
    """Whether some layers' weights are FP4 and their activations stay as they are."""
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") == "modelopt":
        return "W4A16" in json.dumps(quantization)
    groups = (quantization.get("config_groups") or {}).values()
    return any("nvfp4" in str(group.get("format")) and not group.get("input_activations") for group in groups)


def let_off(config: dict[str, Any]) -> None:
    """vLLM registers activation scales for FP4 layers that have none, and sets them itself; and biases of
    experts in GPTQ, which are zero where there are none."""
    filled: dict[tuple[str, ...], tuple[str, ...]] = {("w13_qweight",): ("w13_bias", "w2_bias")}
    if _weight_only(config):
        # Global scales of weights (ModelOpt's name, compressed-tensors') are what FP4 layers have alone.
        filled["weight_scale_2", "weight_global_scale"] = ("input_scale", "input_global_scale")
    check = getattr(DefaultModelLoader, "track_weights_loading", None)
    if check is None:
        return

    def without_filled(self: Any, model: Any, loaded: Any, *rest: Any, **options: Any) -> Any:
        for name, module in model.named_modules() if loaded is not None else ():
            own = [key for key, _ in module.named_parameters(recurse=False)]
            for known_by, left in filled.items():
                if any(key.endswith(known_by) for key in own):
                    loaded |= {f"{name}.{key}" for key in own if key.endswith(left)}
        return check(self, model, loaded, *rest, **options)

    DefaultModelLoader.track_weights_loading = without_filled
