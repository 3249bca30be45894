"""Experts that are published as [experts, in, out]: read, written as published, and as another family's."""

from __future__ import annotations

import json

import pytest
from doctor_bench import ids, opened, repair, tensors_in
from quirks_planted import change_config

from qexport.doctor import diagnose
from qexport.onepass.rows import read_rows

EXPERTS = "model.language_model.layers.1.mlp.experts"
GATE_UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"


def rows(view, part, start=0, stop=None):
    tensor = next(each for each in view if each.name == f"model.layers.1.mlp.experts.{part}.weight")
    return read_rows(tensor.data, start, stop or tensor.data.matrix_shape[0])


def test_they_are_read_the_other_way(zoo):
    stored = tensors_in(zoo("qwen3_vl_moe"))
    experts, hidden, double = stored[GATE_UP].shape
    gate, up = stored[GATE_UP].mT.chunk(2, dim=1)
    view = diagnose(opened(zoo("qwen3_vl_moe"))).repaired.view()
    for part, expected in (("gate_proj", gate), ("up_proj", up), ("down_proj", stored[DOWN].mT)):
        flat = expected.reshape(-1, expected.shape[-1])
        assert rows(view, part).equal(flat)
        for start, stop in ((0, 3), (double // 2 - 1, double // 2 + 1), (5, len(flat) - 7)):
            assert rows(view, part, start, stop).equal(flat[start:stop]), (part, start)
    assert (experts, hidden) == (4, 256)


@pytest.mark.parametrize("layout", ["fused", "each"])
def test_other_layouts_are_told_by_their_shapes(zoo, layout):
    published = diagnose(opened(zoo("qwen3_vl_moe"))).repaired.view()
    other = diagnose(opened(zoo("qwen3_vl_moe", expert_layout=layout))).repaired.view()
    for part in ("gate_proj", "up_proj", "down_proj"):
        assert rows(other, part).equal(rows(published, part))


@pytest.mark.parametrize("layout", ["turned", "fused"])
def test_fix_writes_them_as_published(zoo, tmp_path, layout):
    """vLLM and llama.cpp's converter turn them whatever their shape is."""
    _, out = repair(zoo("qwen3_vl_moe", expert_layout=layout), tmp_path / "out")
    written, published = tensors_in(out), tensors_in(zoo("qwen3_vl_moe"))
    assert written.keys() == published.keys()
    assert all(written[name].equal(tensor) for name, tensor in published.items())


def test_without_its_tower_it_is_qwen3_s_mixture(zoo, zoo_copy, tmp_path):
    """Whose class would not make the weights of chosen experts sum to one by itself."""
    folder = zoo_copy("qwen3_vl_moe")

    def unsaid(config):
        text = {key: value for key, value in config["text_config"].items() if key != "norm_topk_prob"}
        return {**config, "text_config": text}

    change_config(folder, unsaid)
    _, out = repair(folder, tmp_path / "out", vision="drop")
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Qwen3MoeForCausalLM"], "qwen3_moe")
    assert config["norm_topk_prob"] is True
    again = diagnose(opened(out))
    assert ids(again, "error", "repaired") == set()
    single = tensors_in(out)["model.layers.1.mlp.experts.3.down_proj.weight"]
    assert single.equal(tensors_in(folder)[DOWN][3].T)
