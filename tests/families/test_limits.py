"""What llama.cpp and mlx-lm hold in code and a config can say otherwise: refused, noted, or written."""

from __future__ import annotations

from typing import Any

import pytest

from qexport.checkpoint.tensors import LogicalTensor
from qexport.errors import InputError
from qexport.families.build import expected_tensors, template_shape
from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES
from qexport.families.roles import Role
from qexport.families.view import ModelTensor, ModelView
from qexport.formats.gguf.hparams import hyper_parameters
from qexport.formats.gguf.limits import LLAMA_CPP
from qexport.formats.limits import check_limits, config_notes, window_period
from qexport.formats.mlx.limits import MLX_LM

READERS = {"gguf": LLAMA_CPP, "mlx": MLX_LM}

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "head_dim": 16,
    "vocab_size": 32,
    "max_position_embeddings": 4096,
    "sliding_window": None,
    "query_pre_attn_scalar": 16,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def view_of(name: str, *, biases: tuple[Role, ...] = (), **changes: Any) -> ModelView:
    text = {**SMALL, **changes}
    if name == "gemma3" and "sliding_window" not in changes:
        text["sliding_window"] = 512
    hyper = resolve(FAMILIES[name], text)
    tensors = [
        ModelTensor(
            LogicalTensor(p + t.name, template_shape(t, hyper.dims, p + t.name), "BF16", ()),
            t.role,
            block,
            layer,
        )
        for p, t, block, layer in expected_tensors(hyper, 0)
        if not t.role.value.endswith("_bias") or t.role in (*biases, Role.LINEAR_DT_BIAS)
    ]
    return ModelView(name, "model", text, hyper.text, tuple(tensors), hyper.layers, 0, resolved=hyper)


GELU, FULL, SLIDING = "gelu_pytorch_tanh", "full_attention", "sliding_attention"
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        (name, "gguf mlx", {"hidden_act": "relu"}, "hidden_act is 'relu'")
        for name in FAMILIES
        if name != "gemma3"
    ),
    ("gemma3", "gguf mlx", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ("mistral", "gguf mlx", {"sliding_window": 1024}, "sliding_window is 1024"),
    ("qwen3_moe", "gguf mlx", {"sliding_window": 1024, "use_sliding_window": True}, "sliding_window is 1024"),
    (
        "qwen3",
        "gguf mlx",
        {"sliding_window": 1024, "use_sliding_window": True, "max_window_layers": 5},
        "sliding_window is 1024",
    ),
    ("gemma3", "mlx", {"layer_types": [FULL, SLIDING, SLIDING, FULL, SLIDING, FULL]}, "n-th place"),
    ("gemma3", "mlx", {"layer_types": [SLIDING] * 6}, "n-th place"),
    ("gemma3", "gguf", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
    ("gemma3", "gguf mlx", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", "mlx", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("gemma3", "gguf mlx", {"use_bidirectional_attention": True}, "causal"),
    ("qwen3_moe", "gguf", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    ("glm4_moe", "mlx", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1"),
    ("glm4_moe", "gguf", {"n_group": 2, "topk_group": 2}, "topk_group is n_group"),
    ("glm4_moe", "gguf", {"n_group": 128, "topk_group": 1}, "as many as experts"),
    ("qwen2", "gguf mlx", {"head_dim": 32}, "head_dim is 32"),
    ("qwen3_5", "gguf", {"linear_value_head_dim": 16}, "one size for both"),
    ("llama", "gguf mlx", {"rope_scaling": {"rope_type": "ntk"}}, "'ntk'"),
    ("llama", "gguf", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
    ("qwen3", "gguf", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "frequency factors"),
]
ALLOWED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_act": "swish"}),
    ("gemma3", {"hidden_activation": "gelu_new"}),
    ("gemma3", {"hidden_act": "relu"}),  # its class looks at hidden_activation alone
    ("qwen3", {"sliding_window": 1024}),  # not in use
    ("qwen3", {"sliding_window": 1024, "use_sliding_window": True, "max_window_layers": 6}),
    ("gemma3", {"layer_types": [SLIDING, SLIDING, FULL] * 2}),
    ("gemma3", {"layer_types": [FULL] * 6}),
    ("glm4_moe", {"num_experts_per_tok": 1, "norm_topk_prob": False}),
    ("qwen3_moe", {"num_experts_per_tok": 1}),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
    ("qwen3_5", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e7}}),
]


@pytest.mark.parametrize(("name", "formats", "changes", "what"), REFUSED, ids=str)
def test_refused(name: str, formats: str, changes: dict[str, Any], what: str) -> None:
    view = view_of(name, **changes)
    for format_, reader in READERS.items():
        if format_ in formats:
            with pytest.raises(InputError, match=f"cannot be said in {format_.upper()}") as caught:
                check_limits(view, reader)
            assert what in caught.value.message
        else:
            check_limits(view, reader)


@pytest.mark.parametrize(("name", "changes"), ALLOWED, ids=str)
def test_allowed(name: str, changes: dict[str, Any]) -> None:
    view = view_of(name, **changes)  # type: ignore[arg-type]
    assert config_notes(view) == []
    for reader in READERS.values():
        assert check_limits(view, reader) == []


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "qwen3_5", "gemma3"])
def test_biases_that_llama_cpp_does_not_read(name: str) -> None:
    view = view_of(name, biases=(Role.ATTN_Q_BIAS, Role.ATTN_OUTPUT_BIAS))
    with pytest.raises(InputError, match=r"o_proj\.bias"):
        check_limits(view, LLAMA_CPP)
    assert check_limits(view_of(name, biases=(Role.ATTN_Q_BIAS,)), LLAMA_CPP) == []
    assert check_limits(view_of("llama", biases=(Role.ATTN_OUTPUT_BIAS, Role.FFN_UP_BIAS)), LLAMA_CPP) == []


def test_a_window_that_no_text_reaches_is_a_note() -> None:
    (note,) = check_limits(view_of("mistral", sliding_window=4096), LLAMA_CPP)
    assert "no text of 4096 tokens reaches it" in note


def test_another_activation_is_noted_where_the_config_stays() -> None:
    (note,) = config_notes(view_of("llama", hidden_act="relu"))
    assert "transformers runs it" in note


def test_transformers_runs_another_activation() -> None:
    """That FP8 and NVFP4 folders may keep it rests on this."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {key: value for key, value in SMALL.items() if not key.startswith(("num_experts", "linear"))}
    outputs = []
    for act in ("silu", "relu"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **{**small, "hidden_act": act})
        )
        outputs.append(model(torch.tensor([[1, 2, 3]])).logits)
    assert not torch.equal(*outputs)


@pytest.mark.parametrize(
    ("types", "period"),
    [([SLIDING, FULL] * 3, 2), ([SLIDING] * 5 + [FULL], 6), ([FULL] * 6, 1), ([FULL, SLIDING] * 3, None)],
)
def test_gemma_s_pattern_goes_into_gguf(types: list[str], period: int | None) -> None:
    """llama.cpp reads one word per layer (load_swa_pattern); its own pattern needs none."""
    view = view_of("gemma3", layer_types=types)
    assert window_period(view.hyper) == period
    found = hyper_parameters(view, 0, [])
    written = found.get("gemma3.attention.sliding_window_pattern")
    assert ("gemma3.attention.sliding_window" in found) == (SLIDING in types)
    if period in (1, 6):
        assert written is None
    else:
        assert written is not None
        assert list(written.value) == [kind == SLIDING for kind in types]
