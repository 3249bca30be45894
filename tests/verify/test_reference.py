"""The reference built from a model view is transformers' own model, for every family."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qexport.checkpoint.tensors import LogicalTensor, Piece, StoredTensor, matrix_shape
from qexport.errors import EnvironmentProblem, InputError
from qexport.families.roles import Block, Role
from qexport.families.view import ModelTensor, ModelView
from qexport.verification.memory import Fit, fit
from qexport.verification.reference import TransformersReference, reference_from_view

torch = pytest.importorskip("torch")

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_theta": 5000.0,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    },
}
FAMILIES = {
    "llama": ("llama", {**BASE, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("mistral", BASE),
    "qwen2": ("qwen2", {**BASE, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", BASE),
    "qwen3_moe": ("qwen3_moe", {**BASE, **EXPERTS}),
    "gemma3": ("gemma3_text", {**BASE, "sliding_window": 16, "tie_word_embeddings": True}),
    "qwen3_5": ("qwen3_5_text", {**BASE, **LINEAR}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {**BASE, **LINEAR, **EXPERTS}),
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
SLOW = [pytest.param(name, marks=() if name == "llama" else pytest.mark.slow) for name in FAMILIES]


@dataclass
class MemoryCheckpoint:
    """Tensors in memory behind the checkpoint interface."""

    held: dict

    label = "memory"
    files = {}  # noqa: RUF012

    @property
    def tensors(self):
        return {
            name: StoredTensor(name, "F32", tuple(value.shape), "memory", 0, value.numel() * 4)
            for name, value in self.held.items()
        }

    def read_file(self, name):
        raise InputError(name)

    def read_rows(self, name, start, stop):
        value = self.held[name]
        return value.reshape(matrix_shape(tuple(value.shape)))[start:stop]


def whole_model(family: str):
    transformers = pytest.importorskip("transformers")
    model_type, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, config


def view_of(family: str, model, config) -> ModelView:
    tied = bool(config.tie_word_embeddings)
    held = {
        name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    checkpoint = MemoryCheckpoint(held)
    tensors: list[ModelTensor] = []
    for name, stored in checkpoint.tensors.items():
        data = LogicalTensor.whole(checkpoint, stored)
        if name.endswith("experts.gate_up_proj"):
            tensors += halves(data)
        elif name.endswith("experts.down_proj"):
            named = LogicalTensor(f"{name}.weight", data.shape, data.dtype, data.pieces)
            tensors.append(ModelTensor(named, Role.EXPERTS_DOWN, Block.TRUNK, 0))
        else:
            role = {"lm_head.weight": Role.OUTPUT, "model.embed_tokens.weight": Role.TOKEN_EMBD}.get(name)
            if role is None:
                role = Role.LINEAR_A_LOG if name.endswith("A_log") else Role.ATTN_Q
            tensors.append(ModelTensor(data, role, Block.TRUNK, 0))
    extra = LogicalTensor("mtp.fc.weight", (1, 1), "F32", ())
    tensors.append(ModelTensor(extra, Role.MTP_FC, Block.MTP, 0))
    text = config.to_dict()
    return ModelView(family, "tiny", text, text, tuple(tensors), layers=2, mtp_layers=1)


def halves(fused: LogicalTensor) -> list[ModelTensor]:
    """gate and up of every expert, as rows of the fused tensor."""
    experts, double, hidden = fused.shape
    inner = double // 2
    (whole,) = fused.pieces
    made = []
    for role, offset, name in ((Role.EXPERTS_GATE, 0, "gate_proj"), (Role.EXPERTS_UP, inner, "up_proj")):
        starts = [expert * double + offset for expert in range(experts)]
        pieces = tuple(Piece(whole.checkpoint, whole.name, start, start + inner) for start in starts)
        canonical = fused.name.replace("gate_up_proj", f"{name}.weight")
        data = LogicalTensor(canonical, (experts, inner, hidden), fused.dtype, pieces)
        made.append(ModelTensor(data, role, Block.TRUNK, 0))
    return made


@pytest.mark.parametrize("family", SLOW)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_the_view_gives_transformers_own_model(family):
    model, config = whole_model(family)
    ours = reference_from_view(view_of(family, model, config))
    theirs = TransformersReference(model, "theirs", "float32")
    for one, other in zip(ours.score(IDS, 4), theirs.score(IDS, 4), strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.greedy == other.greedy


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_a_plain_forward_pass():
    model, _ = whole_model("llama")
    scores = TransformersReference(model, "tiny", "bfloat16").score(IDS, 5, top=3)
    with torch.no_grad():
        plain = torch.log_softmax(model(torch.tensor([IDS])).logits[0], -1)
    assert len(scores) == len(IDS) - 5
    for at, score in enumerate(scores, start=5):
        assert score.logprob == pytest.approx(float(plain[at - 1, IDS[at]]), abs=1e-5)
        assert score.greedy == int(plain[at - 1].argmax())
        assert score.gap >= 0
        assert len(score.top) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_view_that_lacks_a_tensor_is_refused():
    model, config = whole_model("llama")
    view = view_of("llama", model, config)
    kept = tuple(tensor for tensor in view if "q_proj" not in tensor.name)
    with pytest.raises(InputError, match=r"q_proj\.weight"):
        reference_from_view(ModelView("llama", "tiny", view.config, view.text, kept, 2, 0))


def test_an_unknown_family_is_said():
    with pytest.raises(EnvironmentProblem, match="no modules to run for the family 'mamba'"):
        reference_from_view(ModelView("mamba", "tiny", {}, {}, (), 2, 0))


def test_fit_counts_the_language_model_only():
    def tensor(block, numel):
        data = LogicalTensor(f"{block}.x", (numel,), "BF16", ())
        return ModelTensor(data, Role.ATTN_Q, block)

    tensors = tuple(tensor(block, 1000) for block in (Block.TRUNK, Block.MTP, Block.VISION))
    view = ModelView("llama", "tiny", {}, {}, tensors, 2, 1)
    assert fit(view).parameters == 1000
    assert fit(view, available=2600).ok
    assert not fit(view, available=2599).ok
    assert (Fit(1000, 10_400).dtype, Fit(1000, 10_399).dtype) == ("float32", "bfloat16")
