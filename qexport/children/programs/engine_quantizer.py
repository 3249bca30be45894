"""llm-compressor or ModelOpt, which quantize a checkpoint of floats with text going through it.

The model is what the checkpoint's own class makes of it, so that tensors keep the names that they have; heads
that transformers does not know are left behind, by the libraries too.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers


class Loaded:
    """The libraries are imported here, so that one that is missing is told before the model is read."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._quantize = {"llm-compressor": _llm_compressor, "modelopt": _modelopt}[request["engine"]]
        library = import_module("llmcompressor" if request["engine"] == "llm-compressor" else "modelopt")
        self.version = str(library.__version__)
        self.facts: dict[str, Any] = {}

    def quantize(self) -> str:
        """Write the folder ``request["out"]``."""
        folder = self._request["model"]
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        kind = getattr(transformers, config["architectures"][0])
        model = kind.from_pretrained(folder, dtype="auto", trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._quantize(model, tokenizer, self._request)
        tokenizer.save_pretrained(self._request["out"])
        return self.version


_RUN_AS_ONE = (("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"))
"""Of linear attention: vLLM has one kernel for both with room for one global scale, as for q, k and v.
llm-compressor 0.14 knows those alone, and of two scales vLLM takes the larger for both matrices."""


def _llm_compressor(model: Any, tokenizer: Any, request: dict[str, Any]) -> None:
    fused = import_module("llmcompressor.observers.helpers").FUSED_LAYER_NAMES
    fused.extend(names for names in _RUN_AS_ONE if names not in fused)
    if not torch.accelerator.is_available():  # AWQ pins memory for one, whatever there is
        import_module("llmcompressor.pipelines.cache").IntermediatesCache.pin_memory = lambda *_, **__: None
    ids = request["ids"]
    texts = import_module("datasets").Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]}
    )
    import_module("llmcompressor").oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=texts,
        recipe=request["recipe"],
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
    )
    model.save_pretrained(request["out"], save_compressed=True)


def _modelopt(model: Any, tokenizer: Any, request: dict[str, Any]) -> None:
    quantization = import_module("modelopt.torch.quantization")

    def run(given: Any) -> None:
        with torch.inference_mode():
            for each in request["ids"]:
                given(input_ids=torch.tensor([each]))

    settings = getattr(quantization, request["config"], None)
    if not isinstance(settings, dict):
        known = ", ".join(name for name in dir(quantization) if name.endswith("_CFG"))
        raise ValueError(f"there is no {request['config']}; there are {known}")
    model = quantization.quantize(model.eval(), settings, forward_loop=run)
    with torch.inference_mode():
        import_module("modelopt.torch.export").export_hf_checkpoint(model, export_dir=request["out"])
