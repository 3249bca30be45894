"""Expert layouts there and back; nothing is read on the way."""

from __future__ import annotations

import pytest
from doctor_bench import HeadersOnly, opened, same, tensors_in
from quirks_planted import PLANTS
from zoo import fuse_experts, split_experts

from qexport.checkpoint.tensors import LogicalTensor
from qexport.doctor.layout import ExpertLayout, convert_experts, expert_layouts, trunk_layout
from qexport.doctor.subject import examine
from qexport.errors import InputError


def put_together(tensors, source):
    """Read logical tensors of ``source``, which may have been made from headers alone."""
    import torch

    return {
        name: torch.cat([source.read_rows(p.name, p.start, p.stop) for p in t.pieces]).reshape(t.shape)
        for name, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("name", "layout", "reference"),
    [
        ("qwen3_5_moe", ExpertLayout.SINGLE, split_experts),
        ("qwen3_5_moe_text", ExpertLayout.FUSED, fuse_experts),
    ],
)
def test_conversion_is_that_of_the_zoo(zoo, name, layout, reference):
    source = opened(zoo(name))
    subject = examine(HeadersOnly(source))
    converted = convert_experts(subject.tensors, layout)
    expected = reference(tensors_in(zoo(name)), "")
    plain = {
        n.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t
        for n, t in expected.items()
    }
    mine = put_together(converted, source)
    assert mine.keys() == plain.keys()
    assert all(same(mine[key], plain[key]) for key in mine)
    back = convert_experts(converted, trunk_layout(subject.tensors))
    assert {n: (t.shape, t.pieces[0].name) for n, t in back.items()} == {
        n: (t.shape, t.pieces[0].name) for n, t in subject.tensors.items()
    }


def test_layouts_are_told_apart(zoo, zoo_copy):
    assert trunk_layout(examine(opened(zoo("qwen3_5"))).tensors) is None
    found = expert_layouts(examine(opened(zoo("qwen3_5_moe_122b"))).tensors)
    assert found["model.layers.0."] is ExpertLayout.FUSED
    assert found["mtp.layers.0."] is ExpertLayout.SINGLE
    folder = zoo_copy("qwen3_5_moe")
    PLANTS["experts_fused_with_weight_suffix"](folder)
    tensors = examine(opened(folder)).tensors
    assert set(expert_layouts(tensors).values()) == {ExpertLayout.OTHER}
    assert trunk_layout(tensors) is ExpertLayout.FUSED


def test_dtypes_that_differ_are_an_input_error(zoo):
    tensors = dict(examine(opened(zoo("qwen3_5_moe_text"))).tensors)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    one = tensors[name]
    tensors[name] = LogicalTensor(one.name, one.shape, "F16", one.pieces)
    with pytest.raises(InputError, match="different dtypes"):
        convert_experts(tensors, ExpertLayout.FUSED)
