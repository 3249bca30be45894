"""RoPE in two spellings, against what transformers makes of the same config."""

from __future__ import annotations

import pytest

from qexport.families.known import FAMILIES
from qexport.families.rope import complete_rope, legacy_rope_keys, rope_disagreements, rope_parameters

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
QWEN = {"rope_theta": 10000000, "partial_rotary_factor": 0.25, "rope_type": "default"}
CASES = [
    ("llama", {"rope_theta": 500000.0}),
    ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "max_position_embeddings": 131072}),
    ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "max_position_embeddings": 131072}),
    ("qwen3", {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}),
    ("qwen3", {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "rope_theta": 10000.0}),
    ("gemma3", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}),
    ("gemma3", {"rope_theta": 1000000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("qwen3_5", {"rope_parameters": QWEN}),
    ("qwen3_5", {"rope_theta": 10000000, "partial_rotary_factor": 0.25}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), CASES)
def test_as_transformers_reads_it(name, text):
    """The completed config is what transformers 5 made of the incomplete one, and stays that."""
    from transformers import AutoConfig

    family = FAMILIES[name]
    kind = family.text_model_type
    given = AutoConfig.for_model(kind, **_copied(text)).rope_parameters
    completed = complete_rope(family, text)
    again = AutoConfig.for_model(kind, **_copied({**text, **completed})).rope_parameters
    assert again == {**given, **{k: v for k, v in again.items() if k not in given and k.startswith("mrope")}}


def _copied(value):
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in value.items()}


def test_legacy_keys_of_scaled_rope():
    family = FAMILIES["llama"]
    params = {**LLAMA3, "rope_theta": 500000.0}
    assert legacy_rope_keys(params) == {"rope_theta": 500000.0, "rope_scaling": LLAMA3}
    legacy = {"rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "type": "llama3"}}
    assert rope_parameters(family, legacy) == params


def test_gemma_has_one_set_per_kind():
    family = FAMILIES["gemma3"]
    params = {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    legacy = legacy_rope_keys(params)
    assert legacy == {
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert rope_parameters(family, legacy) == params


@pytest.mark.parametrize(("head_dim", "section"), [(256, [11, 11, 10]), (64, [3, 3, 2])])
def test_sections_are_filled_in(head_dim, section):
    found = rope_parameters(FAMILIES["qwen3_5"], {"rope_parameters": QWEN, "head_dim": head_dim})
    assert found["mrope_section"] == section


def test_disagreements_are_told():
    text = {"rope_parameters": {"rope_theta": 500000.0}, "rope_theta": 10000.0}
    assert rope_disagreements(FAMILIES["llama"], text) == [
        "rope_theta is 10000.0, but rope_parameters says 500000.0"
    ]
    assert rope_disagreements(FAMILIES["llama"], {"rope_theta": 10000.0}) == []
    assert complete_rope(FAMILIES["llama"], {}) == {}
