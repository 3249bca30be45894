"""The resolved hyper-parameters against transformers' config classes, which they stand in for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from qexport.errors import InputError
from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES
from qexport.families.rope import complete_rope, rope_disagreements
from qexport.formats.gguf.rope import llama3_rope_factors

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 8}
QWEN35 = {"mrope_section": [3, 3, 2], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sizes": SIZES,
    "theta": {"rope_theta": 5e5},
    "yarn, old": {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, new": {"rope_parameters": {**YARN, "rope_theta": 1e6}},
    "linear, new": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
    "linear, old": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6},
    "dynamic": {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 131072},
    "longrope": {**SIZES, "rope_scaling": LONG, "head_dim": 32},
    "interval": {"num_hidden_layers": 6, "full_attention_interval": 3},
    "windows": {**SIZES, "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 512},
    "no window": {**SIZES, "sliding_window": None},
    "pattern": {**SIZES, "sliding_window_pattern": 3, "sliding_window": 256},
    "local": {"rope_theta": 2e6, "rope_local_base_freq": 5e3},
    "experts": {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}

NULLS = {("num_key_value_heads", name) for name in ("llama", "qwen2", "qwen3")}


def theirs(name: str, given: dict[str, Any]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    found = CONFIG_MAPPING[FAMILIES[name].text_model_type].from_dict(copy.deepcopy(given)).to_dict()
    if "num_local_experts" in found:
        found["num_experts"] = found["num_local_experts"]
    return dict(found)


def plain(rope: dict[str, Any]) -> dict[str, Any]:
    """Without the older spelling of the type, and Qwen3.5's sections, which transformers keeps in code."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {key: plain(value) for key, value in rope.items() if isinstance(value, dict)}
    return {key: value for key, value in rope.items() if key != "type" and not key.startswith("mrope")}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_means_what_autoconfig_means(name: str, case: str) -> None:
    given = copy.deepcopy(CONFIGS[case])
    if name == "gemma3" and "rope_parameters" in given:
        given = {"rope_parameters": {"full_attention": given["rope_parameters"]}}
    if name == "gemma3" and "type" in given.get("rope_scaling", {}):
        # Its class looks for the newer name alone, and takes the scaling for none without a word.
        given["rope_scaling"]["rope_type"] = given["rope_scaling"].pop("type")
    wanted = theirs(name, given)
    hyper = resolve(FAMILIES[name], given)
    assert set(FAMILIES[name].defaults) <= {
        *wanted,
        "rope_theta",
        "rope_local_base_freq",
        "sliding_window_pattern",
        *(["norm_topk_prob"] if name == "qwen3_vl_moe" else []),  # its class has no choice
    }
    shared = [key for key in FAMILIES[name].defaults if key in wanted and key != "sliding_window"]
    assert {key: hyper.text[key] for key in shared} == {key: wanted[key] for key in shared}
    assert plain(dict(hyper.text["rope_parameters"])) == plain(wanted["rope_parameters"])
    assert (hyper.hidden, hyper.layers, hyper.heads) == (
        wanted["hidden_size"],
        wanted["num_hidden_layers"],
        wanted["num_attention_heads"],
    )
    if name in ("qwen2", "qwen3", "gemma3") and wanted["sliding_window"]:
        slides = ["sliding_attention" if window else "full_attention" for window in hyper.windows]
        assert slides == wanted["layer_types"]
    if "sliding_window" in given and given["sliding_window"] is None:
        assert not any(hyper.windows)
    if hyper.linear is not None:
        types = ["linear_attention" if kind == "linear" else "full_attention" for kind in hyper.kinds]
        assert types == wanted["layer_types"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_null_is_what_the_class_makes_of_it(name: str) -> None:
    for key in ("head_dim", "num_key_value_heads", "intermediate_size"):
        if key == "head_dim" and "head_dim" not in FAMILIES[name].defaults:
            continue  # a key that the class does not have
        given = {**SIZES, key: None}
        if FAMILIES[name].defaults.get(key) is not None and (key, name) not in NULLS:
            continue  # the class insists on a number
        wanted = theirs(name, given)
        assert resolve(FAMILIES[name], given).text.get(key) == wanted.get(key), key


def test_a_null_base_is_the_family_s() -> None:
    for name, family in FAMILIES.items():
        rope = resolve(family, {"rope_theta": None, "rope_scaling": None}).rope
        assert rope.theta == {"gemma3": 1e6, "qwen3_vl": 5e5, "qwen3_vl_moe": 5e5}.get(name, 1e4)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_resolving_twice_changes_nothing(name: str) -> None:
    for given in CONFIGS.values():
        once = resolve(FAMILIES[name], given)
        again = resolve(FAMILIES[name], once.text)
        assert again.text == once.text
        assert (again.rope, again.local_rope, again.windows) == (once.rope, once.local_rope, once.windows)


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling", "both"])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_yarn_keeps_the_sections(name: str, place: str) -> None:
    """Read by us, and by transformers after the repair: rope_scaling replaces rope_parameters there."""
    whole = {**YARN, **QWEN35, "rope_theta": 1e7}
    given: dict[str, Any] = {"head_dim": 64, place: whole}
    if place == "both":
        given = {"head_dim": 64, "rope_parameters": {**QWEN35, "rope_theta": 1e7}, "rope_scaling": dict(YARN)}
        assert any("mrope_section" in found for found in rope_disagreements(FAMILIES[name], given))
    rope = resolve(FAMILIES[name], given).rope
    assert (rope.kind, rope.factor, rope.sections, rope.partial) == ("yarn", 4.0, (3, 3, 2), 0.25)
    assert (rope.theta, rope.original_context) == (1e7, 1024)
    repaired = {**given, **complete_rope(FAMILIES[name], given)}
    assert theirs(name, repaired)["rope_parameters"] == dict(rope.values)
    assert rope_disagreements(FAMILIES[name], repaired) == []


def test_gemma_turns_local_and_global_layers_by_their_own_base() -> None:
    hyper = resolve(FAMILIES["gemma3"], {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert hyper.local_rope is not None
    assert (hyper.rope.kind, hyper.rope.factor, hyper.rope.theta) == ("linear", 8.0, 1e6)
    assert (hyper.local_rope.kind, hyper.local_rope.theta) == ("default", 1e4)


def test_every_value_has_its_source() -> None:
    hyper = resolve(
        FAMILIES["llama"], {"hidden_size": 64, "num_attention_heads": 4}, repaired={"hidden_size": "x.y"}
    )
    assert {key for key, value in hyper.text.items() if value is not None} == hyper.sources.keys()
    assert hyper.sources["num_attention_heads"] == "stated"
    assert hyper.sources["num_hidden_layers"] == "default of LlamaConfig"
    assert hyper.sources["head_dim"] == "derived"
    assert hyper.sources["hidden_size"] == "x.y"


def test_classes_are_named_as_transformers_names_them() -> None:
    from transformers import CONFIG_MAPPING

    for family in FAMILIES.values():
        assert CONFIG_MAPPING[family.text_model_type].__name__ == family.config_class


@pytest.mark.parametrize(
    ("family", "given", "named"),
    [
        ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ("llama", {"num_attention_heads": [4]}, "num_attention_heads is [4]"),
        ("llama", {"hidden_size": 0, "rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ("qwen3_moe", {"num_experts": 10**6}, "num_experts is 1000000"),
        ("qwen3_5", {"num_hidden_layers": 2, "layer_types": ["full_attention"]}, "1 entries"),
        ("gemma3", {"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, "chunked_attention"),
    ],
)
def test_what_cannot_be_used_is_named(family: str, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(FAMILIES[family], given)
    assert named in caught.value.message


def test_llama3_factors_are_the_converters() -> None:
    """Against transformers' own inverse frequencies: base / scaled."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {
        "head_dim": 128,
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        "max_position_embeddings": 131072,
    }
    factors = llama3_rope_factors(resolve(FAMILIES["llama"], given))
    assert factors is not None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**copy.deepcopy(given)), torch.device("cpu"))
    bare = 1.0 / (500000.0 ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128))
    torch.testing.assert_close(bare / factors, scaled)
    assert factors[[0, -1]].tolist() == [1, 8]
