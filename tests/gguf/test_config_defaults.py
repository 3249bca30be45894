"""Our tables of defaults against transformers' config classes."""

from __future__ import annotations

from typing import Any

import pytest

from qexport.families.view import ModelView
from qexport.formats.gguf.config_defaults import DEFAULTS, resolved_config
from qexport.formats.gguf.rope import llama3_rope_factors

TEXT_TYPES = {"gemma3": "gemma3_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
SAME_MEANING = {"num_local_experts": "num_experts"}

CONFIGS: list[dict[str, Any]] = [
    {},
    {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 8},
    {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
]


@pytest.mark.parametrize("given", CONFIGS, ids=str)
@pytest.mark.parametrize("family", sorted(DEFAULTS))
def test_defaults_are_transformers(family: str, given: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    if family == "gemma3" and "rope_parameters" in given:
        given = {"rope_parameters": {"full_attention": given["rope_parameters"]}}
    model_type = TEXT_TYPES.get(family, family)
    theirs = CONFIG_MAPPING[model_type].from_dict(dict(given)).to_dict()
    theirs = {SAME_MEANING.get(key, key): value for key, value in theirs.items()}
    ours = resolved_config(ModelView(family, "x", given, given, (), 4, 0))
    assert set(DEFAULTS[family]) <= set(theirs)
    assert ours == {key: theirs[key] for key in ours if key in theirs} | {
        key: given[key] for key in given if key not in theirs
    }


def test_llama3_factors_are_the_converters() -> None:
    """Against transformers' own inverse frequencies: base / scaled."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    given = {
        "head_dim": 128,
        "rope_theta": 500000.0,
        "rope_scaling": scaling,
        "max_position_embeddings": 131072,
    }
    factors = llama3_rope_factors(resolved_config(ModelView("llama", "x", given, given, (), 4, 0)))
    assert factors is not None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**given), torch.device("cpu"))
    plain = 1.0 / (500000.0 ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128))
    torch.testing.assert_close(plain / factors, scaled)
    assert factors[[0, -1]].tolist() == [1, 8]
