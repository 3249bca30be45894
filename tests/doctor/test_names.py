"""Names: every spelling leads to one canonical name, and canonical names to themselves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.families.build import expected_tensors
from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES
from qexport.families.names import canonical_name, published_name

TEXT = {"num_hidden_layers": 2, "full_attention_interval": 2, "num_experts": 2}
CANONICAL = sorted(
    {
        prefix + template.name
        for family in FAMILIES.values()
        for prefix, template, *_ in expected_tensors(resolve(family, TEXT), int(family.head is not None))
    }
    | {"visual.blocks.0.attn.qkv.weight", "vision_tower.vision_model.head.weight", "multi_modal_projector.x"}
    | {"model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.7.up_proj.weight"}
)
WRAPPINGS = st.lists(st.sampled_from(["model.", "language_model."]), max_size=4).map("".join)


@settings(deadline=None)
@given(st.sampled_from(CANONICAL))
def test_canonical_names_stay(name):
    assert canonical_name(name).canonical == name


@settings(deadline=None)
@given(st.sampled_from(CANONICAL), WRAPPINGS, st.booleans(), st.booleans())
def test_every_spelling_leads_home(name, wrapping, base_model, base_layer):
    vision = name.startswith(("visual.", "vision_tower.", "multi_modal_projector."))
    bare = name.removeprefix("model.")
    if vision:
        # A vision tower has at most `model.` in front, then language models; never one after the other again.
        parts = ("model." if "model." in wrapping else "") + "language_model." * wrapping.count(
            "language_model."
        )
        stored = parts + bare
    else:
        stored = (wrapping or "model.") + bare
    if base_layer and stored.endswith(".weight"):
        stored = stored.removesuffix(".weight") + ".base_layer.weight"
    if base_model:
        stored = "base_model.model." + stored
    spelled = canonical_name(stored)
    assert spelled.canonical == name
    assert spelled.vision == vision
    assert spelled.mtp == name.startswith("mtp.")
    assert canonical_name(spelled.canonical).canonical == spelled.canonical


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_stable(stored):
    once = canonical_name(stored).canonical
    twice = canonical_name(once).canonical
    assert canonical_name(twice).canonical == twice


@settings(deadline=None)
@given(st.sampled_from(CANONICAL), st.sampled_from(sorted(FAMILIES)), st.booleans())
def test_published_names_lead_home(name, family, wrapper):
    assert canonical_name(published_name(name, FAMILIES[family], wrapper=wrapper)).canonical == name
