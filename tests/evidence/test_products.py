"""Products of inputs, held layer by layer behind the streamed pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qexport.codecs.feedback import Feedback, prepare, shrunk
from qexport.errors import InputError
from qexport.evidence import products as module
from qexport.evidence.observe import Observer
from qexport.evidence.options import StreamOptions
from qexport.evidence.products import InputProducts
from qexport.evidence.stream import LayerStream
from qexport.families.roles import Block, Role
from qexport.families.view import ModelView
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine

EXACT = StreamOptions(precision="float32")
UNIT = 64


def view_of(zoo: Any, name: str) -> ModelView:
    return examine(ModelChoice(str(zoo(name))), download=False).repaired.view()


def ids(chunks: int = 20, size: int = 32) -> np.ndarray:
    return (np.arange(chunks * size, dtype=np.int32) * 7 % 300).reshape(chunks, size)


class Sums(Observer):
    """All products of a whole run, by the book."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], Any] = {}
        self.counts: dict[tuple[str, int], int] = {}

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        for name in names:
            key, wide = (name, matrix), inputs.double()
            self.sums[key] = self.sums.get(key, 0) + wide.T @ wide
            self.counts[key] = self.counts.get(key, 0) + len(inputs)


def same(one: Feedback | None, other: Feedback | None) -> bool:
    if one is None or other is None:
        return one is other
    assert one.coupling is not None
    assert other.coupling is not None
    return bool(
        (one.order == other.order).mean() > 0.95
        and np.allclose(one.reach[:64, :64], other.reach[:64, :64], atol=2e-3)
        and np.allclose(one.coupling.sum(1), other.coupling.sum(1), rtol=5e-2, atol=2e-2)
    )


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "llama3"])
def test_products_are_those_of_all_that_enters(zoo: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "FLOOR", 0.2)
    view, sums = view_of(zoo, name), Sums()
    last: list[torch.Tensor] = []
    LayerStream(view, EXACT).run(ids(), sums, final=lambda _, states: last.append(states.clone()))
    output = view.find(Role.OUTPUT)
    if output is not None:
        sums.saw((output.name,), 0, 1, torch.cat(last).reshape(-1, last[0].shape[-1]))
    products = InputProducts(view, ids(), EXACT)
    wanted = sorted({name for name, _ in sums.sums}, key=products.moment)
    products.follow(wanted)
    compared = 0
    for tensor in wanted:
        products.reach(tensor)
        found = products.of(tensor, UNIT, None)
        for matrix in range(len(found)):
            count = sums.counts.get((tensor, matrix), 0)
            total = sums.sums.get((tensor, matrix))
            enough = total is not None and count >= 0.2 * len(total)
            expected = prepare(shrunk((total / count).float(), count), UNIT) if enough else None
            assert same(found[matrix], expected), (tensor, matrix)
            compared += expected is not None
    assert compared > 10
    products.close()


def test_one_layer_is_held_and_equal_inputs_once(zoo: Any) -> None:
    view = view_of(zoo, "qwen3_5")
    first = [t.name for t in view if t.block is Block.TRUNK and t.layer == 0 and len(t.shape) == 2]
    gate, up = (next(name for name in first if part in name) for part in ("gate_proj", "up_proj"))
    products = InputProducts(view, ids(), EXACT)
    products.follow(first)
    assert not products._held.inputs
    products.reach(gate)
    held = products._held.inputs
    assert set(held) <= set(first)
    assert [id(part) for part in held[gate][0]] == [id(part) for part in held[up][0]]
    one, other = products.of(gate, UNIT, None), products.of(up, UNIT, None)
    assert one[0] is other[0] is not None
    later = next(t.name for t in view if t.block is Block.TRUNK and t.layer == 1)
    products.reach(later)
    assert not products._held.inputs  # nothing of the second layer is wanted
    with pytest.raises(ValueError, match="behind"):
        products.reach(gate)
    products.close()


def test_columns_in_the_order_of_the_output(zoo: Any) -> None:
    view = view_of(zoo, "llama3")
    name = next(t.name for t in view if "o_proj" in t.name)
    products = InputProducts(view, ids(), EXACT)
    products.follow([name])
    products.reach(name)
    plain = products.of(name, 256, None)[0]
    turned = products.of(name, 256, np.arange(256)[::-1].copy())[0]
    assert plain is not None
    assert turned is not None
    assert (255 - turned.order == plain.order).all()
    products.close()


def test_too_few_tokens_are_said(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in two of the experts: each sees a part of the text."""
    monkeypatch.setattr(module, "FLOOR", 3)
    view = view_of(zoo, "qwen3_5_moe")
    experts = next(t for t in view if len(t.shape) == 3 and "up" in t.name and t.layer == 0)
    dense = next(t.name for t in view if t.name.endswith("q_proj.weight") and t.block is Block.TRUNK)
    products = InputProducts(view, ids(40, 32), EXACT)
    products.follow([experts.name, dense])
    products.reach(experts.name)
    found = products.of(experts.name, UNIT, None)
    plain = sum(each is None for each in found)
    assert plain > 0
    products.reach(dense)
    assert products.of(dense, UNIT, None)[0] is not None
    assert products.left_out[experts.name] == (plain, experts.shape[0])
    assert dense not in products.left_out
    products.close()


def test_an_embedding_has_no_product(zoo: Any) -> None:
    view = view_of(zoo, "llama3")
    embedding = view.find(Role.TOKEN_EMBD)
    assert embedding is not None
    with pytest.raises(InputError, match="no product"):
        InputProducts(view, ids(), EXACT).moment(embedding.name)
