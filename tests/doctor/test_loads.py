"""transformers loads repaired checkpoints: nothing missing, nothing unexpected, the same logits."""

from __future__ import annotations

import pytest
import torch
from doctor_bench import repair
from quirks_planted import BASE, PLANTS
from zoo import ZOO

pytestmark = pytest.mark.slow

# transformers warns about things of its own (deprecated fields, missing kernels).
TOLERANT = pytest.mark.filterwarnings("ignore")
TROUBLED = [
    "wrapper_type_flat",
    "causal_arch_wrapper_names",
    "nested_prefix_thrice",
    "peft_prefix",
    "experts_fused_with_weight_suffix",
    "rope_parameters_only",
    "tied_with_equal_head",
    "tied_with_other_head",
    "vision_declared_absent",
    "stray_float32_matrix",
]


def load(folder):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    multimodal = (config.architectures or [""])[0].endswith("ForConditionalGeneration")
    kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    for key in ("missing_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    behind = f"model.layers.{config.get_text_config().num_hidden_layers}."  # GLM's head is the layer there
    assert all(name.startswith(("mtp.", behind)) for name in info["unexpected_keys"])
    assert type(model).__name__ == config.architectures[0]
    return model.eval()


def logits(model):
    tokens = torch.arange(3, 27).reshape(1, -1)
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@TOLERANT
@pytest.mark.parametrize("name", ZOO)
def test_every_family_loads(zoo, tmp_path, name):
    source = zoo(name)
    _, out = repair(source, tmp_path / "out")
    assert torch.equal(logits(load(out)), logits(load(source)))


@TOLERANT
@pytest.mark.parametrize("name", TROUBLED)
def test_repaired_ones_load(zoo_copy, tmp_path, name):
    folder = zoo_copy(BASE[name])
    PLANTS[name](folder)
    _, out = repair(folder, tmp_path / "out")
    assert logits(load(out)).isfinite().all()


@TOLERANT
@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3", "llama3", "gemma3", "mistral"])
def test_tokenizers_load_and_split_as_before(zoo, tmp_path, name):
    from transformers import AutoTokenizer

    source = zoo(name, style="saved")
    _, out = repair(source, tmp_path / "out")
    text = (
        "The river runs\n\n  past the mill: \u0928\u092e\u0938\u094d\u0924\u0947 e\u0301cole 1234 <|im_end|>"
    )
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert dict(after(text)) == dict(before(text))
    assert after.eos_token == before.eos_token
    assert after.chat_template == before.chat_template
