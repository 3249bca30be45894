"""Regenerates tests/gguf/golden_mixture/*.json: the types that ``llama-quantize --dry-run`` prints.

    QEXPORT_LLAMA_BIN=/path/to/llama.cpp/build/bin python tests/gguf/make_mixture_golden.py

Every model is a GGUF of real names and real layer counts with tiny rows: the tool looks at names, widths and
metadata, and reads no data in a dry run. The JSON holds the model as well, so the test needs no tool.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

GOLDEN = Path(__file__).parent / "golden_mixture"
FILE_TYPES = [
    *(
        "F32",
        "F16",
        "BF16",
        "Q8_0",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q2_K",
        "Q2_K_S",
        "Q3_K",
        "Q3_K_S",
        "Q3_K_M",
    ),
    *(
        "Q3_K_L",
        "Q4_K",
        "Q4_K_S",
        "Q4_K_M",
        "Q5_K",
        "Q5_K_S",
        "Q5_K_M",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "MXFP4_MOE",
    ),
    *(
        "IQ3_M",
        "IQ3_S",
        "IQ3_XS",
        "IQ3_XXS",
        "IQ2_M",
        "IQ2_S",
        "IQ2_XS",
        "IQ2_XXS",
        "IQ1_M",
        "IQ1_S",
    ),
]
LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) .*type = +(\S+), size = [^(]*(?:\((\S+)\))?\s*$")
Tensors = list[tuple[str, list[int], list[int]]]  # name inside the block, torch shape, blocks ([] = outside)


def dense(layers: int, columns: int = 256, *, tied: bool = False) -> Tensors:
    blocks, vector, matrix = list(range(layers)), [columns], [2, columns]
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    return [
        ("token_embd.weight", matrix, []),
        ("output_norm.weight", vector, []),
        *([] if tied else [("output.weight", matrix, [])]),
        *[(f"{name}.weight", vector, blocks) for name in ("attn_norm", "ffn_norm")],
        *[(f"{name}.weight", matrix, blocks) for name in names],
    ]


def experts(layers: int, columns: int = 256) -> Tensors:
    blocks = list(range(layers))
    kept = [
        row for row in dense(layers, columns) if not row[0].startswith("ffn_") or row[0] == "ffn_norm.weight"
    ]
    stacked = [(f"ffn_{name}_exps.weight", [2, 2, columns], blocks) for name in ("gate", "up", "down")]
    return [*kept, ("ffn_gate_inp.weight", [2, columns], blocks), *stacked]


def hybrid(trunk: int, *, moe: bool = False, tied: bool = False, mtp: int = 1, columns: int = 256) -> Tensors:
    """Qwen3.5: three DeltaNet layers to one of attention, then the MTP block, which is attention."""
    full = [i for i in range(trunk) if i % 4 == 3] + list(range(trunk, trunk + mtp))
    linear = [i for i in range(trunk) if i % 4 != 3]
    every, vector, matrix = list(range(trunk + mtp)), [columns], [2, columns]
    rows: Tensors = [
        ("token_embd.weight", matrix, []),
        ("output_norm.weight", vector, []),
        *([] if tied else [("output.weight", matrix, [])]),
        *[(f"{name}.weight", vector, every) for name in ("attn_norm", "post_attention_norm")],
        *[(f"{name}.weight", matrix, full) for name in ("attn_q", "attn_k", "attn_v", "attn_output")],
        *[(f"{name}.weight", vector, full) for name in ("attn_q_norm", "attn_k_norm")],
        *[(f"{name}.weight", matrix, linear) for name in ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta")],
        ("ssm_out.weight", matrix, linear),
        ("ssm_conv1d.weight", [2, 4], linear),
        ("ssm_norm.weight", vector, linear),
        ("ssm_a", vector, linear),
        ("ssm_dt.bias", vector, linear),
    ]
    if moe:
        rows += [(f"ffn_{name}_exps.weight", [2, 2, columns], every) for name in ("gate", "up", "down")]
        rows += [(f"ffn_{name}_shexp.weight", matrix, every) for name in ("gate", "up", "down")]
        rows += [("ffn_gate_inp.weight", matrix, every), ("ffn_gate_inp_shexp.weight", vector, every)]
    else:
        rows += [(f"ffn_{name}.weight", matrix, every) for name in ("gate", "up", "down")]
    if mtp:
        last = [trunk]
        rows += [("nextn.eh_proj.weight", [2, 2 * columns], last)]
        rows += [(f"nextn.{name}.weight", vector, last) for name in ("enorm", "hnorm", "shared_head_norm")]
    return rows


def model(
    arch: str, layers: int, heads: Any, kv_heads: Any, *, n_experts: int = 0, mtp: int = 0
) -> dict[str, Any]:
    return {
        "arch": arch,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "experts": n_experts,
        "mtp_layers": mtp,
    }


def narrow_down(rows: Tensors, columns: int, name: str = "ffn_down") -> Tensors:
    return [(n, [*s[:-1], columns] if n.startswith(name) else s, b) for n, s, b in rows]


MODELS: dict[str, tuple[dict[str, Any], Tensors]] = {
    "hybrid_64_1": (model("qwen35", 65, 24, 4, mtp=1), hybrid(64)),
    "hybrid_64_0": (model("qwen35", 64, 24, 4), hybrid(64, mtp=0)),
    "hybrid_32_1_tied": (model("qwen35", 33, 16, 4, mtp=1), hybrid(32, tied=True)),
    "hybrid_moe_40_1": (model("qwen35moe", 41, 16, 2, n_experts=256, mtp=1), hybrid(40, moe=True)),
    "hybrid_moe_60_1": (model("qwen35moe", 61, 32, 2, n_experts=512, mtp=1), hybrid(60, moe=True)),
    "hybrid_8_1_width_544": (model("qwen35", 9, 8, 2, mtp=1), hybrid(8, columns=544)),
    "hybrid_8_0_width_576_tied": (model("qwen35", 8, 9, 3), hybrid(8, mtp=0, columns=576, tied=True)),
    "llama_32_gqa1": (model("llama", 32, 32, 32), dense(32)),
    "llama_32_gqa4": (model("llama", 32, 32, 8), dense(32)),
    "llama_30_gqa3_tied": (model("llama", 30, 9, 3), dense(30, 576, tied=True)),
    "llama_22_gqa8_width_100": (model("llama", 22, 32, 4), narrow_down(dense(22), 100)),
    "llama_6_width_100_head": (model("llama", 6, 4, 4), narrow_down(dense(6), 100, "output.")),
    "llama_32_8_experts": (model("llama", 32, 32, 8, n_experts=8), experts(32)),
    "llama_80_70b": (model("llama", 80, 64, 8), dense(80)),
    "llama_80_65b": (model("llama", 80, 64, 64), dense(80)),
    "qwen2_80_72b": (model("qwen2", 80, 64, 8), dense(80)),
    "qwen3moe_48": (model("qwen3moe", 48, 32, 4, n_experts=128), experts(48)),
    "llama_12_kv_per_layer": (model("llama", 12, [32] * 12, [32] * 6 + [4] * 6), dense(12)),
}

V8 = ["attn_v", "q8_0"]
# Override runs: on two models, with types that keep, raise and do not fit.
OVERRIDES: list[dict[str, Any]] = [
    {"tensor_types": [[r"blk\.(0|1|2)\.attn_v", "q8_0"]]},  # does not count as a layer: shifts the mixture
    {"tensor_types": [[r"ffn_down", "q5_K"], ["FFN_", "Q3_K"], [r"blk\.\D", "f16"]]},
    {"tensor_types": [V8, [r"blk\.[[:digit:]]\.attn_output\.weight$", "bf16"], ["token_embd", "q4_0"]]},
    {"output": "q5_k"},
    {"token_embedding": "q3_k"},
    {"output": "f16", "token_embedding": "q8_0", "tensor_types": [["output", "q4_0"]]},
]


def write_gguf(path: Path, facts: dict[str, Any], tensors: Tensors) -> None:
    writer = gguf.GGUFWriter(path, facts["arch"])
    writer.add_block_count(facts["layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(facts["heads"])
    writer.add_head_count_kv(facts["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    writer.add_rope_dimension_count(8)
    writer.add_key_length(8)
    writer.add_value_length(8)
    if facts["experts"]:
        writer.add_expert_count(facts["experts"])
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(64)
    if facts["arch"].startswith("qwen35"):
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(64)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(4)
        writer.add_ssm_group_count(2)
        if facts["mtp_layers"]:
            writer.add_nextn_predict_layers(facts["mtp_layers"])
    for name, shape in each_tensor(tensors):
        if len(shape) == 1 or name.endswith("_norm.weight") or re.search("gate_inp|conv1d", name):
            writer.add_tensor(name, np.zeros(shape, np.float32))
        else:
            bf16 = np.zeros([*shape[:-1], 2 * shape[-1]], np.uint8)
            writer.add_tensor(name, bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def each_tensor(tensors: Tensors) -> list[tuple[str, list[int]]]:
    return [
        (f"blk.{block}.{name}" if block >= 0 else name, shape)
        for name, shape, blocks in tensors
        for block in (blocks or [-1])
    ]


def write_imatrix(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.ffn_down.weight.in_sum2", np.ones((1, 256), np.float32))
    writer.add_tensor("blk.0.ffn_down.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dry_run(
    tool: Path, path: Path, file_type: str, imatrix: Path | None, options: dict[str, Any]
) -> dict[str, str]:
    arguments: list[str] = [str(tool), "--dry-run"]
    if imatrix is not None:
        arguments += ["--imatrix", str(imatrix)]
    for pattern, kind in options.get("tensor_types", []):
        arguments += ["--tensor-type", f"{pattern}={kind}"]
    if "output" in options:
        arguments += ["--output-tensor-type", options["output"]]
    if "token_embedding" in options:
        arguments += ["--token-embedding-type", options["token_embedding"]]
    done = subprocess.run([*arguments, str(path), file_type], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.name} {file_type}: {done.stderr[-2000:]}{done.stdout[-500:]}")
    types = {}
    for line in (done.stdout + done.stderr).splitlines():
        if match := LINE.match(re.sub(r", warning:.*?falling back to \S+ *", ", ", line)):
            types[match[1]] = (match[3] or match[2]).upper()
    return types


def spans(numbers: list[int]) -> str:
    """``[0, 1, 2, 5] -> "0-2 5"``."""
    groups = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def compact(types: dict[str, str]) -> dict[str, Any]:
    """Tensor name -> type, with the blocks of one name put together."""
    table: dict[str, dict[str, list[int]]] = {}
    for name, kind in sorted(types.items()):
        match = re.match(r"blk\.(\d+)\.(.*)", name)
        row = table.setdefault(match[2] if match else name, {})
        row.setdefault(kind, []).append(int(match[1]) if match else -1)
    return {
        name: next(iter(row)) if len(row) == 1 else {kind: spans(blocks) for kind, blocks in row.items()}
        for name, row in table.items()
    }


def main() -> None:
    tool = Path(os.environ["QEXPORT_LLAMA_BIN"]) / "llama-quantize"
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        imatrix = Path(folder) / "imatrix.gguf"
        write_imatrix(imatrix)
        for label, (facts, tensors) in MODELS.items():
            path = Path(folder) / f"{label}.gguf"
            write_gguf(path, facts, tensors)
            names = {name for name, _ in each_tensor(tensors)}
            runs = []
            for file_type in FILE_TYPES:
                plain = dry_run(tool, path, file_type, None, {})
                assert plain.keys() == names, (label, file_type, sorted(names - plain.keys())[:5])
                runs.append({"file_type": file_type, "types": compact(plain)})
                weighted = dry_run(tool, path, file_type, imatrix, {})
                runs.append({"file_type": file_type, "imatrix": True})
                if weighted != plain:  # the same as the run before it, unless said
                    runs[-1]["types"] = compact(weighted)
            if label in ("hybrid_8_1_width_544", "hybrid_32_1_tied", "llama_32_gqa4"):
                for file_type, options in itertools.product(["Q4_K_M", "Q3_K_M", "Q8_0", "BF16"], OVERRIDES):
                    # the tool aborts where a width does not fit --token-embedding-type / --output-tensor-type
                    if "width" in label and (options.keys() - {"tensor_types"}):
                        continue
                    types = compact(dry_run(tool, path, file_type, None, options))
                    runs.append({"file_type": file_type, **options, "types": types})
            stored = [[name, shape, spans(blocks)] for name, shape, blocks in tensors]
            lines = ",\n".join("  " + json.dumps(run) for run in runs)
            head = json.dumps({"model": facts, "tensors": stored})[:-1]
            (GOLDEN / f"{label}.json").write_text(f'{head}, "runs": [\n{lines}\n]}}\n')
            path.unlink()
            print(label, len(runs), file=sys.stderr)


if __name__ == "__main__":
    main()
