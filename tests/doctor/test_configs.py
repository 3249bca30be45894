"""Configs that say what cannot be, in the wrong type, or about a model around the model."""

from __future__ import annotations

import json
import random

import pytest
import torch
from doctor_bench import HeadersOnly, ids, opened, repair
from quirks_planted import change_config, change_tensors, tensors_in

from qexport.doctor import diagnose, explain
from qexport.doctor.contradictions import ACTIVATIONS
from qexport.errors import QexportError
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.merged.plan import plan_merged
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4


class Said(HeadersOnly):
    """A checkpoint whose config.json (or another small file) says something else."""

    def __init__(self, inner, document, file="config.json"):
        super().__init__(inner)
        self._file, self._bytes = file, json.dumps(document).encode()

    def read_file(self, name):
        return self._bytes if name == self._file else super().read_file(name)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def said(folder, **changes):
    """A diagnosis with the language model's settings changed; ``...`` takes a key away."""
    config = config_of(folder)
    text = config.get("text_config", config)
    for key, value in changes.items():
        text.pop(key, None) if value is ... else text.update({key: value})
    return diagnose(Said(opened(folder), config))


CONTRADICTIONS = [
    ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but num_experts 8"),
    ("qwen3_5_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, but num_experts 4"),
    ("qwen3", {"num_key_value_heads": 3}, "does not divide num_attention_heads (8)"),
    ("llama", {"num_attention_heads": 7}, "does not divide hidden_size (256)"),
    ("qwen3_5", {"linear_num_key_heads": 3}, "does not divide linear_num_value_heads"),
    ("qwen3", {"head_dim": 63}, "is 63 values"),
    ("llama", {"partial_rotary_factor": 0.5}, "turns whole heads"),
    ("qwen3_5_text", {"rope_parameters": {"partial_rotary_factor": 0.001, "rope_theta": 1}}, "is 0 values"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "by no factor"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
        "short_factor has 1 numbers",
    ),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "no sliding_window is in use"),
    ("gemma3", {"sliding_window": None}, "sliding_window is null"),
    ("gemma3", {"layer_types": ["full_attention"]}, "1 entries"),
    ("qwen3_moe", {"mlp_only_layers": [7]}, "names layer 7"),
    ("llama", {"hidden_act": "SiLU"}, "hidden_act is 'SiLU'"),
    ("gemma3", {"hidden_activation": "gelu_tanh"}, "no activation that transformers knows"),
]


def test_activations_are_those_of_transformers():
    from transformers.activations import ACT2FN

    assert set(ACT2FN) == ACTIVATIONS


@pytest.mark.parametrize(("name", "changes", "what"), CONTRADICTIONS, ids=str)
def test_contradictions_are_refused_by_key(zoo, name, changes, what):
    found = [f for f in said(zoo(name), **changes).errors if f.id == "config.contradiction"]
    assert found
    assert what in found[0].what


def test_nothing_of_it_is_said_of_whole_models(zoo):
    for name in ("qwen3_5", "qwen3_5_moe", "llama3", "smollm", "mistral", "qwen2", "qwen3_moe", "gemma3"):
        assert not ids(diagnose(opened(zoo(name)))) & {
            "config.contradiction",
            "config.values",
            "config.types",
            "config.bias",
            "vision.foreign",
        }


def test_pruned_experts_and_a_router_that_was_not(zoo_copy):
    folder = zoo_copy("qwen3_moe")
    change_tensors(
        folder, lambda t: {n: x for n, x in t.items() if not any(f"experts.{e}." in n for e in (6, 7))}
    )
    change_config(folder, lambda c: {**c, "num_experts": 6})
    found = [f.what for f in diagnose(opened(folder)).errors if f.id == "config.contradiction"]
    assert found == ["model.layers.0.mlp.* has 6 experts, but its router chooses among 8"]


def with_biases(folder, matrices, layers=None):
    count = config_of(folder)["num_hidden_layers"]
    paths = [f"model.layers.{i}.{matrix}" for i in layers or range(count) for matrix in matrices]

    def add(tensors):
        weights = {path: tensors[f"{path}.weight"] for path in paths}
        return tensors | {
            f"{path}.bias": torch.ones(w.shape[0], dtype=w.dtype) for path, w in weights.items()
        }

    change_tensors(folder, add)


ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_flags_follow_the_biases(zoo_copy, tmp_path, name):
    folder = zoo_copy(name)
    with_biases(folder, ATTENTION)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "config.bias" in ids(diagnosis, "repaired")
    assert config_of(out)["attention_bias"] is True
    assert diagnosis.repaired.hyper.sources["attention_bias"] == "config.bias"


@pytest.mark.parametrize(
    ("name", "matrices", "layers", "without"),
    [
        ("qwen3", ATTENTION, (0, 2), "layers.1.self_attn.q_proj.bias"),
        ("qwen3", ("self_attn.o_proj",), None, "layers.0.self_attn.q_proj.bias"),
        (
            "llama",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            None,
            "self_attn.o_proj.bias",
        ),
        ("llama", ("mlp.gate_proj",), None, "layers.0.mlp.up_proj.bias"),
        ("gemma3", ("self_attn.o_proj",), None, "layers.0.self_attn.q_proj.bias"),
    ],
)
def test_some_of_the_biases_that_readers_make_together(zoo_copy, name, matrices, layers, without):
    folder = zoo_copy(name)
    with_biases(folder, matrices, layers)
    (error,) = diagnose(opened(folder)).errors
    assert error.id == "config.contradiction"
    assert f"{without}: readers make all of these biases or none" in error.what


@pytest.mark.parametrize("lost", [".bias", "1.self_attn.k_proj.bias"])
def test_biases_that_a_family_always_has(zoo_copy, lost):
    folder = zoo_copy("qwen2")
    change_tensors(folder, lambda t: {n: x for n, x in t.items() if not n.endswith(lost)})
    (error,) = diagnose(opened(folder)).errors
    assert error.id == "config.contradiction"
    assert "self_attn." in error.what


def test_biases_that_a_family_has_not(zoo_copy):
    folder = zoo_copy("mistral")
    bias = torch.ones(256, dtype=torch.bfloat16)
    change_tensors(folder, lambda t: t | {"model.layers.0.self_attn.o_proj.bias": bias})
    assert "not part of the mistral family" in diagnose(opened(folder)).errors[0].what


TYPES = [
    ({"pad_token_id": [0]}, 0),
    ({"bos_token_id": ["1"]}, 1),
    ({"rms_norm_eps": "1e-05"}, 1e-05),
    ({"hidden_size": 256.0}, 256),
    ({"num_attention_heads": "8"}, 8),
    ({"rope_theta": "np.float64(500000.0)"}, 500000.0),
    ({"tie_word_embeddings": "true"}, True),
    ({"tie_word_embeddings": 1}, True),
    ({"max_position_embeddings": "131072.0"}, 131072),
    ({"num_hidden_layers": "tensor(3)"}, 3),
]


@pytest.mark.parametrize(("changes", "value"), TYPES, ids=str)
def test_numbers_as_text_become_numbers(zoo_copy, tmp_path, changes, value):
    folder = zoo_copy("llama3")
    change_config(folder, lambda c: {**c, **changes, "of_my_own": "1e-05"})
    diagnosis, out = repair(folder, tmp_path / "out")
    (key,) = changes
    assert "config.types" in ids(diagnosis, "repaired")
    assert config_of(out)[key] == value
    assert type(config_of(out)[key]) is type(value)
    assert config_of(out)["of_my_own"] == "1e-05"
    assert "config.types" not in ids(diagnose(opened(out)))


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": float("inf")},
        {"rms_norm_eps": -1e-6},
        {"num_hidden_layers": -3},
        {"num_attention_heads": True},
        {"hidden_size": [256]},
        {"vocab_size": 10**30},
        {"intermediate_size": 512.5},
        {"num_key_value_heads": "two"},
        {"layer_types": "full_attention"},
        {"rope_scaling": [1, 2]},
        {"rope_scaling": {"factor": "much"}},
        {"eos_token_id": {"id": 2}},
    ],
    ids=str,
)
def test_what_nothing_can_be_made_of_is_named(zoo, changes):
    diagnosis = said(zoo("llama3"), **changes)
    found = [f.what for f in diagnosis.errors if f.id == "config.values"]
    assert found
    assert next(iter(changes)) in found[0]
    explain(diagnosis)


def test_generation_config_is_typed(zoo):
    folder = zoo("qwen3")
    document = {"temperature": "0.6", "top_k": 20.0, "do_sample": "true", "top_p": "high", "mine": "7"}
    diagnosis = diagnose(Said(opened(folder), document, "generation_config.json"))
    assert "generation.types" in ids(diagnosis, "repaired")
    written = json.loads(diagnosis.repaired.files["generation_config.json"])
    assert {"temperature": 0.6, "top_k": 20, "do_sample": True, "mine": "7"}.items() <= written.items()
    assert "top_p" not in written


WRAPPERS = [
    ("mistral", "mistral3", "Mistral3ForConditionalGeneration", "text_config"),
    ("mistral", "llava", "LlavaForConditionalGeneration", "text_config"),
    ("llama", "llava_next", "LlavaNextForConditionalGeneration", "text_config"),
    ("qwen2", "internvl_chat", "InternVLChatModel", "llm_config"),
    ("gemma3", "shieldgemma9", "ShieldGemma9ForImages", "text_config"),
]


def test_settings_of_the_tokenizer_as_text(zoo_copy, tmp_path):
    folder = zoo_copy("llama")
    file = folder / "tokenizer_config.json"
    clean = json.loads(file.read_text())
    as_text = {
        "model_max_length": "4096",
        "add_bos_token": "true",
        "legacy": "False",
        "add_eos_token": "maybe",
    }
    file.write_text(json.dumps(clean | as_text))
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "generation.types" in ids(diagnosis, "repaired")
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert {"model_max_length": 4096, "add_bos_token": True, "legacy": False}.items() <= written.items()


def test_names_of_idefics_and_its_like(zoo_copy, tmp_path):
    folder = zoo_copy("llama")
    plain = tensors_in(folder)
    change_config(
        folder,
        lambda c: {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "text_config": {k: v for k, v in c.items() if k != "architectures"},
            "vision_config": {"hidden_size": 8},
        },
    )
    stray = ("model.vision_model.post_layernorm.weight", "model.connector.modality_projection.proj.weight")

    def wrap(tensors):
        inner = {n.replace("model.", "model.text_model.", 1): x for n, x in tensors.items()}
        return inner | {n: torch.ones(8, dtype=torch.float16) for n in stray}

    change_tensors(folder, wrap)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "vision.foreign" in ids(diagnosis, "repaired")
    assert tensors_in(out).keys() == plain.keys()


@pytest.mark.parametrize("stray", ["vision_tower.w.weight", "model.audio_tower.w.weight"])
def test_what_is_not_renamed_is_not_said_to_be(zoo_copy, stray):
    folder = zoo_copy("llama")
    change_tensors(folder, lambda t: t | {stray: torch.ones(8, dtype=torch.float16)})
    diagnosis = diagnose(opened(folder))
    assert "names.prefix" not in ids(diagnosis)
    assert ids(diagnosis) & {"vision.undeclared", "tensors.unfit"}


@pytest.mark.parametrize(("name", "kind", "architecture", "key"), WRAPPERS)
def test_an_unknown_wrapper_gives_its_language_model(zoo_copy, tmp_path, name, kind, architecture, key):
    folder = zoo_copy(name)
    plain = tensors_in(folder)
    text = {k: v for k, v in config_of(folder).items() if k != "architectures"}
    change_config(
        folder,
        lambda _: {
            "architectures": [architecture],
            "model_type": kind,
            key: text,
            "vision_config": {"model_type": "pixtral", "hidden_size": 8},
            "image_token_index": 10,
        },
    )
    stray = {
        "vision_tower.ln_pre.weight",
        "multi_modal_projector.norm.weight",
        "image_newline",
        "mlp1.0.weight",
    }
    some = torch.ones(8, dtype=torch.bfloat16)
    change_tensors(
        folder, lambda t: {f"language_model.{n}": x for n, x in t.items()} | {n: some.clone() for n in stray}
    )
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "vision.foreign" in ids(diagnosis, "repaired")
    assert not ids(diagnosis) & {"vision.absent", "vision.undeclared", "names.prefix", "config.model_type"}
    told = next(f.what for f in diagnosis.findings if f.id == "vision.foreign")
    assert kind in told
    assert "4 tensors" in told
    assert "Qwen" not in told + next(f.repair for f in diagnosis.findings if f.id == "vision.foreign")
    assert tensors_in(out).keys() == plain.keys()
    written = config_of(out)
    assert written["model_type"] == diagnosis.subject.family.text_model_type
    assert not {"vision_config", "text_config", "llm_config", "image_token_index"} & written.keys()
    assert ids(diagnose(opened(out)), "error", "repaired") == set()


@pytest.mark.parametrize("part", [None, "text_config", "vision_config", "encoder_config"])
@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
def test_declarations_left_anywhere_are_dropped(zoo_copy, tmp_path, part, key):
    folder = zoo_copy("qwen3_5")

    def declare(config):
        config["vision_config"]["encoder_config"] = {"depth": 2}
        inner = {**config, **config["vision_config"]}
        (config if part is None else inner[part])[key] = {"quant_method": "mxfp4"}
        return config

    change_config(folder, declare)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "config.quantization" in ids(diagnosis, "repaired")
    assert key not in json.dumps(config_of(out))


PLANS = (
    plan_merged,
    lambda r: plan_gguf(r.view(), ["Q4_K_M"], GgufOptions()),
    lambda r: plan_mlx(r, MlxOptions(bits=4, group_size=32)),
    plan_fp8,
    lambda r: plan_nvfp4(r, Nvfp4Options()),
)
ODD = [
    None,
    True,
    0,
    -1,
    3,
    2.5,
    "",
    "7",
    "1e-05",
    "true",
    float("nan"),
    float("inf"),
    10**40,
    [],
    [1],
    ["a"],
    {},
]
ODD += [{"a": 1}, [[1]], "full_attention", {"rope_type": "yarn", "factor": 2.0}, "np.float32(0.5)"]


def mutated(config, random_):
    """A config with one to three values dropped, replaced, or of another type, at any depth."""
    config = json.loads(json.dumps(config))
    for _ in range(random_.randint(1, 3)):
        parts = [config, *(value for value in config.values() if isinstance(value, dict))]
        part = random_.choice(parts)
        if not part:
            continue
        key = random_.choice(sorted(part))
        way = random_.random()
        if way < 0.2:
            del part[key]
        elif way < 0.4:
            part[key] = str(part[key])
        elif way < 0.5 and isinstance(part[key], int | float):
            part[key] = random_.choice([float(part[key]), part[key] * 2, part[key] + 1, [part[key]]])
        else:
            part[key] = random_.choice(ODD)
    return config


def survive(folder, seed):
    """One mutation through inspection and the plans of all formats: only errors of ours."""
    config = mutated(config_of(folder), random.Random(seed))
    try:
        diagnosis = diagnose(Said(opened(folder), config))
        json.dumps(diagnosis.to_json())
        json.dumps(explain(diagnosis).to_json())
        repaired = diagnosis.repaired
    except QexportError:
        return 0
    planned = 0
    for plan in PLANS:
        try:
            plan(repaired)
            planned += 1
        except QexportError:
            continue
    return planned


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe_text", "llama3", "qwen3_moe", "gemma3"])
def test_mutated_configs_give_plans_or_our_errors(zoo, name):
    planned = [survive(zoo(name), seed) for seed in range(12)]
    assert any(planned)
