"""A vision tower is known tensor by tensor, and its config is what transformers makes of it."""

from __future__ import annotations

import pytest
from quirks_planted import change_config, change_tensors, tensors_in

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor.diagnose import diagnose
from qexport.errors import InputError
from qexport.families.known import FAMILIES
from qexport.families.roles import Block, Role
from qexport.families.vision import resolve_vision

SEEING = [name for name, family in FAMILIES.items() if family.vision is not None]


@pytest.mark.parametrize("name", SEEING)
def test_defaults_are_those_of_transformers(name):
    from transformers import AutoConfig

    family = FAMILIES[name]
    whole = AutoConfig.for_model(family.wrapper_model_type, vision_config={})
    config = whole.vision_config.to_dict()
    defaults = family.vision.defaults
    assert {key: config[key] for key in defaults} == dict(defaults)
    tokens = family.vision.tokens
    assert {key: getattr(whole, key) for key in tokens} == dict(tokens)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3_5", {}),
        ("qwen3_5_moe", {}),
        ("qwen3_vl", {}),
        ("gemma3", {"form": "wrapper", "vision": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_tensor_of_a_tower_has_a_role(zoo, name, options):
    folder = zoo(name, **options)
    view = diagnose(LocalCheckpoint(folder)).repaired.view()
    seeing = [tensor for tensor in view if tensor.block is Block.VISION]
    stored = [n for n in tensors_in(folder) if "visual" in n or "vision_tower" in n or "multi_modal" in n]
    assert len(seeing) == len(stored) > 30
    assert view.vision is not None
    assert {tensor.layer for tensor in seeing} == {None, *range(view.vision.layers)}
    assert sum(tensor.role is Role.VISION_FFN_DOWN for tensor in seeing) == 2 * view.vision.layers
    last = {"gemma3": Role.VISION_PROJECTOR_NORM, "qwen3_vl": Role.VISION_DEEPSTACK_DOWN}
    assert seeing[-1].role is last.get(name, Role.VISION_PROJECTOR_DOWN)
    assert view.vision.deepstack == ((1, 3) if name == "qwen3_vl" else ())


def test_a_config_that_leaves_out_and_one_in_other_words():
    family = FAMILIES["qwen3_5"]
    found = resolve_vision(family, {"vision_config": {"out_hidden_size": 64, "patch_size": [14, 14]}}, 64)
    assert found is not None
    assert (found.layers, found.dims["v_patch"], found.dims["v_qkv"], found.dims["v_merged"]) == (
        27,
        14,
        3456,
        4608,
    )
    other = resolve_vision(family, {"vision_config": {"out_hidden_size": 64, "num_attention_heads": 8}}, 64)
    assert other is not None
    assert other.dims["v_heads"] == 8
    assert resolve_vision(FAMILIES["llama"], {"vision_config": {}}, 64) is None
    assert resolve_vision(family, {}, 64) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": 2**31 - 1}, "depth is 2147483647, which no model has"),
        ({"patch_size": [14, 16]}, "patch_size"),
        ({"out_hidden_size": 32}, "out_hidden_size is 32, but the language model's hidden_size is 64"),
        ({"num_heads": 5}, "shared out over its heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
    ids=str,
)
def test_sizes_that_are_none(changes, said):
    config = {"vision_config": {"out_hidden_size": 64, **changes}}
    with pytest.raises(InputError, match="vision_config") as refused:
        resolve_vision(FAMILIES["qwen3_5"], config, 64)
    assert said in refused.value.message


def test_what_does_not_fit_is_named(zoo_copy):
    folder = zoo_copy("qwen3_5")
    lost, wrong = "model.visual.blocks.0.norm1.bias", "model.visual.merger.linear_fc2.weight"

    def change(tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name != lost}
        return {**tensors, wrong: tensors[wrong][:8].clone(), "model.visual.extra": tensors[wrong][0].clone()}

    change_tensors(folder, change)
    change_config(folder, lambda c: c)
    (error,) = diagnose(LocalCheckpoint(folder)).errors
    assert error.id == "tensors.unfit"
    for part in (
        "missing: visual.blocks.0.norm1.bias",
        "visual.merger.linear_fc2.weight: shape [8, 256], but config.json says [256, 256]",
        "not part of the qwen3_5 family: visual.extra",
    ):
        assert part in error.what
