"""What inspect shows, and that it is plain JSON."""

from __future__ import annotations

import json

from doctor_bench import HeadersOnly, opened, tensors_in
from quirks_planted import PLANTS

from qexport.doctor import diagnose, explain


def test_numbers_of_a_mixture(zoo):
    seen = explain(diagnose(HeadersOnly(opened(zoo("qwen3_5_moe")))))
    tensors = tensors_in(zoo("qwen3_5_moe"))
    total = sum(t.numel() for t in tensors.values())
    mtp = sum(t.numel() for n, t in tensors.items() if n.startswith("mtp."))
    vision = sum(t.numel() for n, t in tensors.items() if n.startswith("model.visual."))
    experts = sum(t.numel() for n, t in tensors.items() if ".mlp.experts." in n and not n.startswith("mtp."))
    counted = seen.parameters
    assert (counted.total, counted.mtp, counted.vision) == (total, mtp, vision)
    assert counted.trunk == total - mtp - vision
    assert counted.active == counted.trunk - experts // 2  # two of four
    assert (seen.experts, seen.experts_per_token, seen.mtp) == (4, 2, 1)
    assert seen.layers == {"linear attention": 3, "full attention": 1}
    assert seen.multimodal
    assert seen.chat_template == ("tokenizer_config.json",)
    assert sum(seen.dtypes.values()) == total


def test_plain_model_as_json(zoo):
    value = explain(diagnose(opened(zoo("llama3")))).to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["family"] == "llama"
    assert value["tied"] is True
    assert value["experts"] is None
    assert value["context_length"] == 131072
    assert value["tokenizer"] == "BPE (tokenizer.json)"
    assert {f["id"] for f in value["findings"]} >= {"rope.legacy_missing"}


def test_a_checkpoint_in_error_is_explained_too(zoo_copy):
    folder = zoo_copy("qwen3_5")
    PLANTS["mtp_declared_absent"](folder)
    seen = explain(diagnose(opened(folder)))
    assert seen.mtp == 0
    assert seen.findings[0].id == "mtp.lost"
