"""transformers on one folder, on the CPU: quantized weights are dequantized while it loads them.

Its loader fills what it does not find with random numbers and only logs that, so its own list of missing and
left-over tensors is looked at here: anything on it refuses the folder. The MTP head is no part of its models,
and it leaves that out of both lists. A folder with a vision tower is loaded whole, as those who show it
pictures do; the tower computes in float32, so that what it makes of them is the stored numbers' doing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open


class Loaded:
    """The folder ``request["model"]``."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.version = str(transformers.__version__)
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        folder = request["model"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        sees = getattr(config, "vision_config", None) is not None and _has_tower(folder)
        auto = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        self.model, info = auto.from_pretrained(
            folder, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
        self.model.eval()
        if sees:
            self._widen(folder)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = sorted(str(name) for name in info.get(kind) or () if not of_head(str(name), config))
            if names:
                raise ValueError(f"{len(names)} {kind.replace('_', ' ')}, the first {names[0]}")
        self.facts = {
            "strict": True,
            "sees": sees,
            "parameters": sum(1 for _ in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
        }
        ends = self.model.generation_config.eos_token_id
        self.ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        self.facts["ends"] = sorted(self.ends)

    def _widen(self, folder: str) -> None:
        """The tower; and decays that are stored in float32, which are not rounded of a text model alone."""
        for name, part in self.model.model.named_children():
            if name != "language_model":
                part.float()
        parameters = dict(self.model.named_parameters())
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in parameters.keys() & tensors.keys():
                    if tensors.get_slice(name).get_dtype() == "F32":
                        parameters[name].data = tensors.get_tensor(name)

    @torch.inference_mode()
    def tokens(
        self, ids: list[int], n_predict: int, picture: dict[str, Any] | None = None, image_token: int = -1
    ) -> Iterator[tuple[int, Any]]:
        """Greedy by hand: what generation_config.json recommends (sampling, penalties) has no say."""
        tokens, cache = torch.tensor([ids]), None
        seen: dict[str, Any] = {}
        if picture is not None:
            kinds = (tokens == image_token).int()
            seen = _inputs(picture)
            seen["mm_token_type_ids" if "image_grid_thw" in seen else "token_type_ids"] = kinds
        for _ in range(n_predict):
            out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **seen)
            cache, seen = out.past_key_values, {}
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

    @torch.inference_mode()
    def embed(self, picture: dict[str, Any]) -> dict[str, Any]:
        """A row for each token, float32, with what goes into deeper layers behind it, where anything does."""
        features = self.model.model.get_image_features(**_inputs(picture), return_dict=True)
        found = features.pooler_output
        rows = found[0] if isinstance(found, (tuple, list)) or found.ndim == 3 else found
        whole = torch.cat([rows, *(getattr(features, "deepstack_features", None) or ())], dim=-1).float()
        return {"tokens": len(whole), "rows": base64.b64encode(whole.numpy().tobytes()).decode()}

    @staticmethod
    def likeliest(logprobs: Any, token: int, top: int) -> list[Any]:
        """The token's own, and the ``top`` likeliest with theirs."""
        best, places = logprobs.topk(min(top, logprobs.shape[-1]))
        return [float(logprobs[token]), [list(pair) for pair in zip(places.tolist(), best.tolist())]]  # noqa: B905


def _has_tower(folder: str) -> bool:
    """Whether any of it is stored: a config may tell of one that was left out, and text needs none."""
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if any("visual." in name or "vision_tower." in name for name in tensors.keys()):  # noqa: SIM118
                return True
    return False


def of_head(name: str, config: Any) -> bool:
    """Whether a tensor lies in a layer behind the trunk's, where GLM has its MTP head.

    transformers leaves those out of its lists at the depths of the published models alone.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_nextn_predict_layers", None) or 0
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return found is not None and 0 <= int(found[1]) - text.num_hidden_layers < heads


def _inputs(picture: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.frombuffer(
            bytearray(base64.b64decode(each["data"])), dtype=getattr(torch, each["dtype"])
        ).reshape(each["shape"])
        for name, each in picture["inputs"].items()
    }
