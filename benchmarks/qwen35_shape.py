"""Write a random checkpoint with the shape of a Qwen3.5 model, to measure on: 1.26 B values by default.

    python benchmarks/qwen35_shape.py OUT [--layers 16] [--hidden 2048] ...

Weights are normal with realistic spread; the tokenizer is that of the demo model, its vocabulary padded.
The text such a model writes is noise, so exports of it are measured with --no-verify.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from qexport.families.build import expected_tensors
from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES
from qexport.families.roles import EXPERT_ROLES, NORM_ROLES, Role

DEMO = Path(__file__).parent.parent / "qexport" / "demo" / "model"
SHARD_BYTES = 1 << 30


def config_of(args: argparse.Namespace) -> dict:
    kinds = ["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(args.layers)]
    return {
        "model_type": "qwen3_5_text",
        "hidden_size": args.hidden,
        "intermediate_size": args.intermediate,
        "num_hidden_layers": args.layers,
        "layer_types": kinds,
        "full_attention_interval": 4,
        "num_attention_heads": args.hidden // 256,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "vocab_size": args.vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
        },
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "architectures": ["Qwen3_5ForCausalLM"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=6144)
    parser.add_argument("--vocab", type=int, default=32768)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    config = config_of(args)
    hyper = resolve(FAMILIES["qwen3_5"], config)
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = total = 0
    for prefix, template, _, _ in expected_tensors(hyper, 1):
        if template.optional and template.role is not Role.OUTPUT:
            continue
        assert template.role not in EXPERT_ROLES
        shape = [hyper.dims[word] for word in template.shape.split()]
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        spread = 0.1 if template.role in NORM_ROLES else 0.02
        tensor.normal_(0.0, spread, generator=generator)
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][prefix + template.name] = tensor
        size += tensor.nbytes
        total += tensor.numel()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, args.out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    (args.out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": index}, indent=2)
    )
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (DEMO / name).exists():
            shutil.copy(DEMO / name, args.out / name)
    print(f"{total / 1e9:.3f} B values in {len(shards)} shards")


if __name__ == "__main__":
    main()
