"""The MTP block written out in plain torch from the checkpoint's tensors: the oracle of the streamed one.

    h = fc([norm(embedding of the next token), norm(hidden state after the final norm)])
    h = h + attention(norm(h));  h + mlp(norm(h))

with zero-centred norms, a rotated quarter of each head, and a sigmoid gate that comes out of the query
matrix. Nothing here comes from transformers or from `qexport`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu
from whole_model import Sums


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of a zoo checkpoint in float32 under plain names, and its text config."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            tensors[name.replace("model.language_model.", "model.")] = tensor.float()
    config = json.loads((folder / "config.json").read_text())
    return tensors, config.get("text_config", config)


@dataclass
class Draft:
    """The head of one checkpoint. ``shift``, ``swapped``: a wrong one, to see that the difference shows."""

    folder: Path
    shift: int = 1
    swapped: bool = False

    def __post_init__(self) -> None:
        self.tensors, self.config = load(self.folder)
        self.seen = Sums()
        self.out = torch.empty(0)

    def run(self, ids: np.ndarray, hidden: torch.Tensor) -> Sums:
        """``hidden``: what the trunk gives for ``ids``, after its final norm."""
        tokens = torch.from_numpy(ids).long()
        length = tokens.shape[1] - 1
        embedded = self.tensors["model.embed_tokens.weight"][tokens[:, self.shift : self.shift + length]]
        parts = [
            self.norm(embedded, "mtp.pre_fc_norm_embedding"),
            self.norm(hidden[:, :length], "mtp.pre_fc_norm_hidden"),
        ]
        h = self.times(torch.cat(parts[::-1] if self.swapped else parts, dim=-1), "mtp.fc")
        at = "mtp.layers.0"
        h = h + self.attention(self.norm(h, f"{at}.input_layernorm"), f"{at}.self_attn")
        inner = self.norm(h, f"{at}.post_attention_layernorm")
        if self.config.get("num_experts"):
            made = self.moe(inner.reshape(-1, inner.shape[-1]), f"{at}.mlp").view(inner.shape)
        else:
            made = self.mlp(inner, f"{at}.mlp")
        self.out = self.norm(h + made, "mtp.norm")
        return self.seen

    def times(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        self.seen.add(f"{name}.weight", inputs)
        return inputs @ self.tensors[f"{name}.weight"].t()

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * (1 + self.tensors[f"{name}.weight"])

    def attention(self, x: torch.Tensor, at: str) -> torch.Tensor:
        chunks, length, _ = x.shape
        width, heads = self.config["head_dim"], self.config["num_attention_heads"]
        groups = self.config["num_key_value_heads"]
        both = self.times(x, f"{at}.q_proj").view(chunks, length, heads, 2 * width)
        query, gate = both[..., :width], both[..., width:]
        key = self.times(x, f"{at}.k_proj").view(chunks, length, groups, width)
        value = self.times(x, f"{at}.v_proj").view(chunks, length, groups, width)
        query = self.rotated(self.norm(query, f"{at}.q_norm"))
        key = self.rotated(self.norm(key, f"{at}.k_norm"))
        out = torch.empty(chunks, length, heads, width)
        ahead = torch.ones(length, length).triu(1).bool()
        for head in range(heads):
            group = head // (heads // groups)
            scores = query[:, :, head] @ key[:, :, group].transpose(1, 2) / width**0.5
            out[:, :, head] = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value[:, :, group]
        return self.times((out * torch.sigmoid(gate)).flatten(2), f"{at}.o_proj")

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        rope = self.config["rope_parameters"]
        dims = int(x.shape[-1] * rope["partial_rotary_factor"])
        half = dims // 2
        speeds = rope["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) * 2 / dims)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speeds
        cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
        first, second, rest = x[..., :half], x[..., half:dims], x[..., dims:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def mlp(self, x: torch.Tensor, at: str) -> torch.Tensor:
        inner = silu(self.times(x, f"{at}.gate_proj")) * self.times(x, f"{at}.up_proj")
        return self.times(inner, f"{at}.down_proj")

    def moe(self, x: torch.Tensor, at: str) -> torch.Tensor:
        """Shared expert, router, and each expert over the tokens among whose best it is."""
        many = self.config["num_experts"]
        out = torch.sigmoid(self.times(x, f"{at}.shared_expert_gate")) * self.mlp(x, f"{at}.shared_expert")
        best = self.times(x, f"{at}.gate").softmax(-1).topk(self.config["num_experts_per_tok"], dim=-1)
        for expert in range(many):
            tokens, place = torch.nonzero(best.indices == expert, as_tuple=True)
            gate, up = self.expert(at, expert)
            inner = silu(self.into(x[tokens], gate, f"{at}.experts.gate_proj", expert))
            inner = inner * self.into(x[tokens], up, f"{at}.experts.up_proj", expert)
            back = self.into(inner, self.down(at, expert), f"{at}.experts.down_proj", expert)
            share = best.values[tokens, place, None] / best.values[tokens].sum(-1, keepdim=True)
            out = out.index_add(0, tokens, back * share)
        return out

    def into(self, inputs: torch.Tensor, weight: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        """A product of one expert."""
        self.seen.add(f"{name}.weight", inputs, expert, self.config["num_experts"])
        return inputs @ weight.t()

    def expert(self, at: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate and up of one expert, however the checkpoint stores them."""
        stacked = self.tensors.get(f"{at}.experts.gate_up_proj")
        if stacked is not None:
            gate, up = stacked[number].chunk(2)
            return gate, up
        each = f"{at}.experts.{number}"
        return self.tensors[f"{each}.gate_proj.weight"], self.tensors[f"{each}.up_proj.weight"]

    def down(self, at: str, number: int) -> torch.Tensor:
        """The last matrix of one expert."""
        stacked = self.tensors.get(f"{at}.experts.down_proj")
        return (
            stacked[number]
            if stacked is not None
            else self.tensors[f"{at}.experts.{number}.down_proj.weight"]
        )
