"""A chain of drafts, against the head written out in plain torch, which computes all of it anew each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from head_texts import EXACT, final_of, tiny, view_of
from plain_draft import Draft
from whole_model import random_ids
from zoo_types import Zoo

from qexport.errors import InputError, UsageProblem
from qexport.evidence.chained import HeadStream
from qexport.evidence.observe import Observer
from qexport.evidence.stream import LayerStream

MOE = {"experts": 4, "experts_per_token": 2}


def folder_of(zoo: Zoo, name: str) -> Path:
    return tiny(zoo, name, **(MOE if "moe" in name else {}))


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_each_draft_is_what_a_whole_recomputation_gives(zoo: Zoo, name: str) -> None:
    folder = folder_of(zoo, name)
    stream = HeadStream(view_of(folder), EXACT)
    ids = random_ids(200, 2, 12)
    final = final_of(stream, ids)
    chain, embedded = stream.head(12), stream.embedded(ids)
    with torch.no_grad():
        drafts = list(chain.unrolled(final, embedded.of([0, 1]), 4))
    for anchor in range(8):
        states = final[:, : anchor + 1]
        for ahead in range(4):
            plain = Draft(folder)
            plain.run(ids[:, : anchor + ahead + 2], states)
            torch.testing.assert_close(drafts[ahead][:, anchor], plain.out[:, -1], rtol=1e-4, atol=1e-4)
            states = torch.cat([states, plain.out[:, -1:]], dim=1)


@pytest.mark.parametrize("name", ["qwen3_5", "glm4_moe"])
def test_the_first_draft_is_the_streamed_pass_s(zoo: Zoo, name: str) -> None:
    folder = tiny(zoo, name, **(MOE if "moe" in name else {}))
    view = view_of(folder)
    stream, ids = HeadStream(view, EXACT), random_ids(200, 2, 16)
    final = final_of(stream, ids)
    whole = torch.empty(2, 15, stream.width)

    def keep(start: int, hidden: torch.Tensor) -> None:
        whole[start : start + len(hidden)] = hidden

    LayerStream(view, EXACT).run(ids, Observer(), draft=keep)
    with torch.no_grad():
        first, second = stream.head(16).unrolled(final, stream.embedded(ids).of([0, 1]), 2)
    torch.testing.assert_close(first, whole[:, :14], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(second, first)


def test_routers_are_not_trained(zoo: Zoo) -> None:
    for name, fixed in (
        ("qwen3_5_moe", {"layers.0.mlp.gate.weight", "layers.0.mlp.shared_expert_gate.weight"}),
    ):
        chain = HeadStream(view_of(folder_of(zoo, name)), EXACT).head(8)
        trained = chain.trained()
        assert {own for own, _ in chain.module.named_parameters()} - trained.keys() == fixed
        assert all(parameter.requires_grad for parameter in trained.values())


def test_without_a_head_there_is_nothing_to_draft_with(zoo: Zoo) -> None:
    with pytest.raises(InputError, match="no MTP head"):
        HeadStream(view_of(tiny(zoo, mtp=False)), EXACT)
    with pytest.raises(UsageProblem, match="family llama"):
        HeadStream(view_of(zoo("llama")), EXACT)
