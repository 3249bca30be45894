"""Regenerates tests/nvfp4/golden_PEER.json: what ModelOpt and llm-compressor write of zoo models.

    PYTHONPATH=tests python tests/nvfp4/make_nvfp4_golden.py modelopt
    PYTHONPATH=tests python tests/nvfp4/make_nvfp4_golden.py llmcompressor

For each case the peer's declaration, and for each quantized module its global scale and a digest of its
levels and block scales: modules can be compared where the peer does not share a global scale and we do. The
tests run it anew, in a child: a folder, and for each thing to leave in it the peer and the case, as
``modelopt/dense``.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import zoo
from nvfp4_reading import digest_of, tensors_in

HERE = Path(__file__).parent
LEFT = [
    *("lm_head", "re:.*embed_tokens$", r"re:.*linear_attn\.in_proj_a$", r"re:.*linear_attn\.in_proj_b$"),
    *(r"re:.*linear_attn\.conv1d$", r"re:.*mlp\.gate$", r"re:.*mlp\.shared_expert_gate$"),
    *("re:.*visual.*", "re:.*mtp.*"),
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("qwen3_5", {"float32_ssm": False}),
    "MoE": ("qwen3_5_moe", {"float32_ssm": False, "experts": 3}),
    "llama": ("smollm", {}),
    "llama float16": ("llama", {"layers": 2}),
}
"""Zoo model and its options; all linear layers are quantized."""
SMALL = {"float32_ssm": False, "hidden": 128, "intermediate": 256, "layers": 4}
MIXED_CASES = {"dense mixed": ("qwen3_5", SMALL), "MoE mixed": ("qwen3_5_moe", {**SMALL, "experts": 3})}
"""Of these one layer's MLP, attention and DeltaNet are FP8, the other MLPs NVFP4."""
W4A4_CASES = {
    **{case: CASES[case] for case in ("dense", "MoE")},
    "MoE float32": ("qwen3_5_moe", {"experts": 3, "dtype": "fp32"}),
}
"""With scales of inputs: either peer runs the model on :func:`w4a4_tokens`."""
MIXED = {
    "NVFP4A16": [r"re:.*layers\.[023]\.mlp\.(.*\.)?(gate|up|down)_proj$"],
    "FP8_BLOCK": [
        r"re:.*layers\.1\.mlp\.(.*\.)?(gate|up|down)_proj$",
        r"re:.*self_attn\.[qkvo]_proj$",
        r"re:.*linear_attn\.(in_proj_qkv|in_proj_z|out_proj)$",
    ],
}
UNREACHED = "model.layers.3.self_attn.o_proj.input_quantizer"
RECIPE = "huggingface/qwen3_5/ptq/w4a16_nvfp4-fp8_attn-kv_fp8_cast"
PACKAGES = {
    "modelopt": ("nvidia-modelopt", "torch", "transformers"),
    "modelopt-mixed": ("nvidia-modelopt", "torch", "transformers"),
    "llmcompressor": ("llmcompressor", "compressed-tensors", "torch"),
    "llmcompressor-mixed": ("llmcompressor", "compressed-tensors", "torch"),
}


def make(peer: str, case: str, out: Path) -> dict[str, Any]:
    """Build the case's model, quantize it into ``out``, and say what came out."""
    name, options = (CASES | MIXED_CASES | W4A4_CASES)[case]
    with tempfile.TemporaryDirectory() as work:
        source = zoo.build(name, Path(work) / "model", **options)
        if peer == "llmcompressor":
            llmcompressor(source, out, scheme="NVFP4A16")
        elif peer == "llmcompressor-mixed":
            llmcompressor(source, out, config=mixed())
        elif peer == "llmcompressor-w4a4":
            oneshot(source, out)
        else:
            modelopt(source, out, peer)
    declared = json.loads((out / "config.json").read_text())["quantization_config"]
    made: dict[str, Any] = {"config": declared, "modules": digest_of(tensors_in(out))}
    if not peer.startswith("llmcompressor"):
        made["file"] = json.loads((out / "hf_quant_config.json").read_text())
    return made


def llmcompressor(source: Path, out: Path, **how: Any) -> None:
    from llmcompressor import model_free_ptq

    model_free_ptq(source, out, ignore=LEFT, max_workers=1, device="cpu", **how)


def w4a4_tokens() -> torch.Tensor:
    """What goes through the model for scales of inputs, ``(chunks, chunk)``: no text of any length."""
    return torch.randint(0, 64, (3, 24), generator=torch.Generator().manual_seed(5))


def oneshot(source: Path, out: Path) -> None:
    """W4A4, and beside the folder the largest magnitude that each module's observer has seen."""
    import transformers
    from datasets import Dataset
    from llmcompressor import oneshot as run
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.observers import Observer

    warnings.simplefilter("ignore")
    kind = getattr(transformers, json.loads((source / "config.json").read_text())["architectures"][0])
    model = kind.from_pretrained(source, dtype="auto")
    ids = w4a4_tokens().tolist()
    seen: dict[str, float] = {}
    plain = Observer.get_qparams

    def noted(observer: Any) -> Any:
        if observer.base_name == "input":
            name = next(name for name, each in model.named_modules() if each is observer)
            both = torch.stack([observer.min_vals.abs(), observer.max_vals.abs()])
            seen[name.removesuffix(".input_observer")] = float(both.max())
        return plain(observer)

    Observer.get_qparams = noted
    run(
        model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(source),
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(ids[0])] * len(ids)}),
        recipe=QuantizationModifier(targets=["Linear"], scheme="NVFP4", ignore=LEFT),
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    Observer.get_qparams = plain
    model.save_pretrained(out, save_compressed=True)
    out.with_name(f"{out.name}-inputs.json").write_text(json.dumps(seen))


def mixed() -> Any:
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.quant_scheme import QuantizationScheme, preset_name_to_scheme

    groups = {
        name: QuantizationScheme(**preset_name_to_scheme(name, targets).model_dump())
        for name, targets in MIXED.items()
    }
    return QuantizationConfig(config_groups=groups)


def modelopt(source: Path, out: Path, peer: str) -> None:
    """ModelOpt's folder; of W4A4, beside it the largest magnitude that each module's quantizer has seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import modelopt.torch.quantization as mtq
        from modelopt.recipe import load_recipe
        from modelopt.torch.export import export_hf_checkpoint
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        model.config.architectures = [type(model).__name__]  # the exporter cannot do without
        model.config._experts_implementation = "eager"
        w4a4 = peer == "modelopt-w4a4"
        config: Any = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG if w4a4 else mtq.W4A16_NVFP4_CFG)
        if peer == "modelopt-mixed":
            recipe = load_recipe(RECIPE).quantize
            config = recipe if isinstance(recipe, dict) else recipe.model_dump()
        tokens = w4a4_tokens() if w4a4 else torch.arange(32)[None] % 64
        model = mtq.quantize(model, config, lambda model: model(tokens))
        if w4a4:
            # As of a layer that no token reaches: its exporter has a number for that.
            model.get_submodule(UNREACHED).amax = torch.tensor(0.0)
            seen = {
                name: float(module.amax)
                for name, module in model.named_modules()
                if name.endswith("input_quantizer") and module.amax is not None
            }
            out.with_name(f"{out.name}-inputs.json").write_text(json.dumps(seen))
        with torch.inference_mode():
            export_hf_checkpoint(model, export_dir=out)


def main() -> None:
    peer, *jobs = sys.argv[1:]
    if jobs:
        for job in jobs:
            out = Path(peer) / job
            made = make(*job.split("/"), out)
            out.with_name(f"{out.name}.json").write_text(json.dumps(made))
        return
    for kind in (peer, f"{peer}-mixed"):
        cases = [case for case in CASES if kind != "modelopt-mixed" or "llama" not in case]
        cases = list(MIXED_CASES) if kind == "llmcompressor-mixed" else cases
        with tempfile.TemporaryDirectory() as work:
            done = {case: make(kind, case, Path(work) / case) for case in cases}
        versions = {package: version(package).split("+")[0] for package in PACKAGES[kind]}
        golden = HERE / f"golden_{kind}.json"
        golden.write_text(json.dumps({"versions": versions, "cases": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
