"""Routing flips: the same experts as transformers' own routers choose, and a router that is broken shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_types import Zoo

from qexport.checkpoint.memory import MemoryCheckpoint
from qexport.families.roles import Role
from qexport.families.view import ModelView
from qexport.onepass.rows import read_rows
from qexport.receipt.measures import Measures
from qexport.receipt.typed import as_json, fit
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine
from qexport.verification.comparison import compare
from qexport.verification.text_run import run_text

MIXTURES = ("qwen3_moe", "qwen3_5_moe", "glm4_moe")


def view_of(folder: Path) -> ModelView:
    return examine(ModelChoice(str(folder)), download=False).repaired.view()


def ids_for(folder: Path) -> np.ndarray:
    config = json.loads((folder / "config.json").read_text())
    vocabulary = config.get("text_config", config)["vocab_size"]
    return np.random.default_rng(0).integers(0, vocabulary, (3, 130), dtype=np.int32)


def rolled(view: ModelView, layer: int) -> ModelView:
    """The router of one layer with its rows moved on by one: every score is another expert's."""
    tensors = []
    for tensor in view:
        if tensor.role is Role.ROUTER and tensor.layer == layer:
            rows = read_rows(tensor.data, 0, tensor.data.matrix_shape[0]).roll(1, 0).contiguous()
            made = MemoryCheckpoint("rolled", {tensor.name: rows})
            tensor = replace(tensor, data=made.logical(tensor.name))
        tensors.append(tensor)
    return replace(view, tensors=tuple(tensors))


def chosen_by_transformers(folder: Path, ids: np.ndarray) -> dict[int, np.ndarray]:
    """What the routers of the whole model return, seen by hooks on them."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[int, np.ndarray] = {}

    def keep(layer: int, result: Any) -> None:
        found[layer] = result[2].sort(-1).values.reshape(*ids.shape, -1).numpy()

    for layer, module in enumerate(model.model.layers):
        if (router := getattr(module.mlp, "gate", None)) is not None:
            router.register_forward_hook(lambda _module, _args, result, layer=layer: keep(layer, result))
    with torch.no_grad():
        model.model(torch.from_numpy(ids).long(), use_cache=False)
    return found


@pytest.mark.parametrize("name", MIXTURES)
def test_the_experts_of_every_token_are_those_of_transformers(zoo: Zoo, name: str) -> None:
    folder = zoo(name)
    ids = ids_for(folder)
    expected = chosen_by_transformers(folder, ids)
    with run_text(view_of(folder), ids) as run:
        # Dense layers are in neither, nor is the MTP head's.
        assert run.routes.keys() == expected.keys()
        for layer, chosen in run.routes.items():
            assert chosen.dtype == np.int16
            assert (chosen != expected[layer]).any(-1).mean() < 0.01, layer


@pytest.mark.parametrize("name", MIXTURES)
def test_a_router_whose_rows_are_exchanged_shows(zoo: Zoo, name: str) -> None:
    view, ids = view_of(zoo(name)), ids_for(zoo(name))
    last = max(tensor.layer or 0 for tensor in view if tensor.role is Role.ROUTER)
    with run_text(view, ids) as source:
        same = compare(source, view, ids).measures(Measures()).routing_flips
        broken = compare(source, rolled(view, last), ids).measures(Measures()).routing_flips
    assert same is not None
    assert broken is not None
    assert same.mean == same.error == 0
    shares = {each.layer: each.share for each in broken.layers}
    assert shares.keys() == {each.layer for each in same.layers}
    assert shares.pop(last) > 0.5
    assert all(share == 0 for share in shares.values())
    assert broken.mean == pytest.approx(sum(each.share for each in broken.layers) / len(broken.layers))


def test_flips_are_in_receipts_and_dense_models_have_none(zoo: Zoo) -> None:
    mixture, dense = view_of(zoo("qwen3_5_moe")), view_of(zoo("qwen3_5"))
    measured = [
        compare(view, changed, ids).measures(Measures())
        for view, changed, ids in (
            (mixture, rolled(mixture, 0), ids_for(zoo("qwen3_5_moe"))),
            (dense, dense, ids_for(zoo("qwen3_5"))),
        )
    ]
    flips = measured[0].routing_flips
    assert flips is not None
    assert len(flips.layers) == mixture.layers
    assert flips.error is not None  # some tokens of the layers after the broken one go elsewhere, too
    assert flips.error > 0
    written = json.loads(json.dumps(as_json(measured[0])))
    read = fit(Measures, written, "measures", []).routing_flips
    assert [each.layer for each in read.layers] == list(range(mixture.layers))
    assert read.mean == pytest.approx(flips.mean)
    assert "routing_flips" not in as_json(measured[1])
