"""The MTP head by itself, drafting several tokens in a chain, with gradients for its weights.

A runtime drafts like this: at an anchor ``t`` the head takes the trunk's state there and the embedding of
token ``t + 1``, and drafts token ``t + 2``; then it takes its own state (after its norm) in the trunk's
place, the embedding of what it has drafted, and so on. Draft ``k`` is for token ``t + k + 1``; what the trunk
says of that token is said at ``t + k``. Keys and values of earlier tokens come from the trunk's states;
behind them stand those of the chain's own.

:func:`HeadChain.unrolled` does so for all anchors of a text at once, a depth at a time. The layer is
transformers' own; only which keys a query sees is said here, through transformers' table of attention
functions. So at depth ``k`` anchor ``t`` sees depth 1's keys of anchors up to ``t`` and its own of depths
2 to ``k``: nothing is computed twice, and nothing is seen that a runtime would not see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from qexport.evidence.modules import OUTSIDE_HEAD, fill, state_of
from qexport.evidence.quiet import quiet_transformers
from qexport.evidence.stream import LayerStream, only
from qexport.families.roles import Block, Role
from qexport.families.view import needs_head

if TYPE_CHECKING:
    import numpy as np

    from qexport.families.view import ModelTensor


FIXED_ROLES = frozenset({Role.ROUTER, Role.ROUTER_BIAS, Role.SHARED_EXPERT_ROUTER})
"""What no training touches: moving routers gains nothing, and sends tokens to experts that never saw them."""
_ATTENTION = "qexport_chain"


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a text's tokens: each row that occurs once, and which one stands where.

    Attributes:
        rows: ``(tokens that occur, width)``.
        places: int64 ``(chunks, chunk)``.
    """

    rows: torch.Tensor
    places: torch.Tensor

    def of(self, chunks: Sequence[int]) -> torch.Tensor:
        """``(chunks, chunk, width)``, float32."""
        return self.rows[self.places[list(chunks)].to(self.rows.device)].float()


class HeadStream(LayerStream):
    """A layer stream whose trunk and whose head are run apart.

    Raises:
        InputError: the model has no head.
        UsageProblem: its family has none.
    """

    def __init__(self, view: Any, options: Any = None) -> None:
        needs_head(view)
        super().__init__(view, options)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def width(self) -> int:
        """Of hidden states."""
        return int(self._model.config.hidden_size)

    def embedded(self, tokens: np.ndarray) -> Embedded:
        """The embeddings that the head takes for ``tokens``, ``(chunks, chunk)``."""
        ids = torch.from_numpy(tokens.astype("int64"))
        self._check(ids)
        occurring, places = torch.unique(ids, return_inverse=True)
        table = self.view.find(Role.MTP_EMBED) or self._named(Role.TOKEN_EMBD)
        with self.running():
            rows = self._embed(occurring[None], table)[0]
        exact = table.data.dtype == "BF16" and torch.equal(rows, rows.bfloat16().float())
        return Embedded(rows.bfloat16() if exact else rows, places)

    def head(self, chunk: int) -> HeadChain:
        """The head with its weights in float32, for chunks of so many tokens."""
        head = self._mtp
        assert head is not None
        tensors = [t for t in self.view if t.block is Block.MTP and t.role not in OUTSIDE_HEAD]
        weights = fill(tensors, self._wanted, lambda _: torch.float32, self._device)
        self._require(head.names.keys() - weights.keys())
        self._place(head.module, {head.names[name]: weight for name, weight in weights.items()}, "")
        with self.running():
            contexts = self._contexts([(0, 1)], chunk)[1]
        kinds = getattr(self._model.config, "layer_types", None) or ["full_attention"]
        _, told = contexts[list(kinds).index("full_attention")]
        return HeadChain(head.module, dict(head.names), tensors, told["position_embeddings"], self._device)


class HeadChain:
    """An MTP head whose weights are all in memory.

    Args:
        module: with ``fc``, three norms and one layer.
        names: canonical name of each parameter to its name in the module.
        tensors: what the checkpoint says of them.
        angles: cosines and sines of every position of a chunk.

    Attributes:
        device: where it computes.
    """

    def __init__(
        self,
        module: Any,
        names: Mapping[str, str],
        tensors: Sequence[ModelTensor],
        angles: tuple[torch.Tensor, torch.Tensor],
        device: torch.device,
    ) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attend)
        (self._layer,) = module.layers
        self._layer.self_attn.config._attn_implementation = _ATTENTION
        self.module, self.names, self.device = module, names, device
        self._angles = angles
        self._fixed = {names[t.name] for t in tensors if t.role in FIXED_ROLES and t.name in names}

    def unrolled(self, final: torch.Tensor, following: torch.Tensor, depth: int) -> Iterator[torch.Tensor]:
        """Drafts 1 to ``depth`` of every anchor that has so many tokens behind it.

        Args:
            final: the trunk's states after its norm, ``(chunks, chunk, width)``.
            following: the embeddings of the tokens of the same places.

        Yields:
            The head's states after its norm, ``(chunks, chunk - depth, width)``: a place for each anchor.
        """
        block, anchors = self.module, final.shape[1] - depth
        state, chain = final[:, :anchors], _Chain()
        for ahead in range(depth):
            behind = following[:, ahead + 1 : ahead + 1 + anchors]
            both = (block.embed_norm(behind), block.hidden_norm(state))
            hidden = block.fc(torch.cat(both, dim=-1))
            angles = tuple(each[..., ahead : ahead + anchors, :] for each in self._angles)
            with quiet_transformers():
                left = only(self._layer(hidden, position_embeddings=angles, attention_mask=None, chain=chain))
            state = block.norm(left.float())
            yield state

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What may be trained, by its name in the module; it wants gradients from now on."""
        found = {}
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name not in self._fixed)
            if name not in self._fixed:
                found[name] = parameter
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by canonical name, as transformers lays experts out; copies on the CPU."""
        own = state_of(self.module)
        return {name: own[inside].detach().to("cpu", copy=True) for name, inside in self.names.items()}

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take these values, by canonical name."""
        own = state_of(self.module)
        with torch.no_grad():
            for name, values in weights.items():
                own[self.names[name]].copy_(values)


class _Chain:
    """The keys and values of the depths so far."""

    def __init__(self) -> None:
        self.first: tuple[torch.Tensor, torch.Tensor] | None = None
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    chain: _Chain,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: ``(batch, heads, anchors, width)`` each; see the module's title."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query, key = query.to(value.dtype), key.to(value.dtype)
    if chain.first is None:
        chain.first = key, value
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None
    chain.own.append((key, value))
    keys, values = chain.first
    anchors = query.shape[2]
    later = torch.ones(anchors, anchors, dtype=torch.bool, device=query.device).triu(1)
    shared = (query @ keys.transpose(-1, -2)).float().masked_fill(later, -torch.inf)
    own = torch.stack([(query * each).float().sum(-1) for each, _value in chain.own], dim=-1)
    shares = (torch.cat([shared, own], dim=-1) * scaling).softmax(-1).to(value.dtype)
    out = shares[..., :anchors] @ values
    for number, (_key, its) in enumerate(chain.own):
        out = out + shares[..., anchors + number, None] * its
    return out.transpose(1, 2), None
