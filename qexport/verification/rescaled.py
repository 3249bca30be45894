"""A model that was rescaled before it was quantized, beside what it was: by products, which are the same.

AWQ and SmoothQuant divide the channels of a norm, of ``up_proj`` or of ``v_proj`` by numbers, and multiply by
them the columns of whatever these channels enter (https://github.com/mit-han-lab/llm-awq,
https://github.com/vllm-project/llm-compressor, ``modifiers/awq/mappings.py``). What the model says stays, and
so do

    norm * columns of what is behind it              both are stored
    rows of ``up_proj`` * columns of ``down_proj``   channel by channel, and of ``v_proj`` and ``o_proj``

The numbers of the second kind are nowhere stored. They are fitted to the columns, one for all rows of each;
then they have to be those of the other matrix's rows as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qexport.families.roles import EXPERT_ROLES, Role
from qexport.onepass.rows import read_rows
from qexport.verification.weight_pairs import Factors, WeightPair

if TYPE_CHECKING:
    import torch

    from qexport.families.view import ModelView


_BEHIND: Mapping[Role, frozenset[Role]] = {
    Role.ATTN_NORM: frozenset(
        {
            *(Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V),
            *(Role.LINEAR_QKV, Role.LINEAR_Z, Role.LINEAR_A, Role.LINEAR_B),
        }
    ),
    Role.FFN_NORM: frozenset(
        {
            *(Role.FFN_GATE, Role.FFN_UP, Role.EXPERTS_GATE, Role.EXPERTS_UP, Role.ROUTER),
            *(Role.SHARED_EXPERT_GATE, Role.SHARED_EXPERT_UP, Role.SHARED_EXPERT_ROUTER),
        }
    ),
    Role.LINEAR_NORM: frozenset({Role.LINEAR_OUT}),
    Role.OUTPUT_NORM: frozenset({Role.OUTPUT}),
}
_NORM_OF = {role: norm for norm, roles in _BEHIND.items() for role in roles}
_ENTERS = {
    Role.ATTN_V: Role.ATTN_OUTPUT,
    Role.FFN_UP: Role.FFN_DOWN,
    Role.SHARED_EXPERT_UP: Role.SHARED_EXPERT_DOWN,
    Role.EXPERTS_UP: Role.EXPERTS_DOWN,
}
_ENTERED_BY = {after: before for before, after in _ENTERS.items()}


def products(
    source: ModelView, about_one: Collection[Role], pairs: Sequence[WeightPair]
) -> Iterator[WeightPair]:
    """Each matrix, to be compared as the product that rescaling leaves as it is.

    Args:
        about_one: roles of norms that are stored without the 1 that readers add.
        pairs: all that there are; norms are not among what is given back.
    """
    model = _Model(source, about_one, {_key(pair, pair.tensor.role): pair for pair in pairs})
    return (model.product(pair) for pair in pairs if not pair.norm)


def _key(pair: WeightPair, role: Role) -> tuple[Any, ...]:
    """Where the tensor of that role is which belongs to this one; of experts, that of the same."""
    if role is Role.OUTPUT_NORM:
        return (role,)
    return role, pair.tensor.block, pair.tensor.layer, pair.expert if role in EXPERT_ROLES else None


@dataclass(frozen=True)
class _Model:
    """The pairs by role and place, and the numbers that were fitted."""

    source: ModelView
    about_one: Collection[Role]
    pairs: Mapping[tuple[Any, ...], WeightPair]
    fits: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)

    def product(self, pair: WeightPair) -> WeightPair:
        role, mine, theirs, rows = pair.tensor.role, None, None, None
        if role in _NORM_OF and (norm := self.pairs.get(_key(pair, _NORM_OF[role]))) is not None:
            mine, theirs = self._norms(norm, pair.theirs.matrix_shape[1])
        if role in _ENTERS and (after := self.pairs.get(_key(pair, _ENTERS[role]))) is not None:
            rows = self._fitted(after, pair)[0]
        if role in _ENTERED_BY and (before := self.pairs.get(_key(pair, _ENTERED_BY[role]))) is not None:
            mine = 1 / self._fitted(pair, before)[1]
        return replace(pair, mine_by=Factors(rows, mine), theirs_by=Factors(None, theirs))

    def _norms(self, norm: WeightPair, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both norms' factors, repeated where one is for every head."""
        one = float(norm.tensor.role in self.about_one)
        both = (read_rows(each, 0, 1).float().view(-1) + one for each in (norm.tensor.data, norm.theirs))
        mine, theirs = (each.repeat(columns // len(each)) for each in both)
        return mine, theirs

    def _fitted(self, after: WeightPair, before: WeightPair) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers of channels, for the rows of ``before`` and for the columns of ``after``: of attention
        several heads' columns share a head's rows."""
        key = _key(after, after.tensor.role)
        if key not in self.fits:
            self.fits[key] = _columns(after)
        columns, rows = self.fits[key], before.rows[1] - before.rows[0]
        if len(columns) == rows:
            return columns, columns
        heads = self.source.hyper.kv_heads
        shared = columns.view(heads, -1, rows // heads)
        mean = shared.mean(1, keepdim=True)
        return mean.reshape(-1), mean.expand_as(shared).reshape(-1)


def _columns(pair: WeightPair) -> torch.Tensor:
    """How many times the source's each column is, float32; 1 where that cannot be said."""
    import torch

    product = energy = torch.zeros(pair.theirs.matrix_shape[1], dtype=torch.float64)
    for _, mine, theirs in pair.parts():
        product = product + (mine.float() * theirs.float()).sum(0)
        energy = energy + theirs.float().square().sum(0)
    found = (product / energy).float()
    return torch.where(found.isfinite() & (found > 0), found, 1.0)
