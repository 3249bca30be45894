"""Quantized folders made by hand from a zoo checkpoint, with formulas of their own: not by what is tested.

`quantize(source, out, kind)` writes `out` and beside it `out`-plain, the same numbers dequantized to bf16.
Every 2-D linear of the trunk is quantized, with one global scale for what runtimes fuse; the MTP layer is FP8
in the native layout (`mtp.fc` stays bf16) and bf16 in the others; experts are written one by one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
import zoo
from safetensors.torch import load_file

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.verification.reference import TransformersReference, reference_from_view

KINDS = ("fp8", "ct-fp8", "ct-nvfp4", "modelopt-nvfp4")

LINEAR = re.compile(
    r"(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_qkv|in_proj_z|out_proj)"
    r"|mlp\.(shared_expert\.|experts\.\d+\.)?(gate|up|down)_proj)\.weight"
)
FUSED = (r"self_attn\.[qkv]_proj", r"(gate|up)_proj", r"linear_attn\.in_proj_(qkv|z)")
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
CT_IGNORE = [
    "lm_head",
    "re:.*visual.*",
    "re:.*embed_tokens$",
    "re:.*mlp\\.gate$",
    "re:.*shared_expert_gate$",
    "re:.*in_proj_[ab]$",
    "re:.*conv1d$",
    "re:.*mtp.*",
]


def quantize(source: Path, out: Path, kind: str) -> Path:
    """Write `out` (and `out`-plain) from the bf16 checkpoint `source`."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    for prefix in [
        name.removesuffix("experts.gate_up_proj") for name in tensors if "experts.gate_up" in name
    ]:
        _split(tensors, prefix + "experts.")
    chosen = [name for name in tensors if _chosen(name, kind)]
    stored, plain = dict(tensors), dict(tensors)
    for name in chosen:
        parts, value = _fp8(tensors[name]) if "fp8" in kind else _nvfp4(tensors[name], _amax(name, tensors))
        del stored[name]
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{suffix}": part for suffix, part in _named(parts, kind).items()}
        plain[name] = value
    config = json.loads((source / "config.json").read_text())
    kept = sorted(name.removesuffix(".weight") for name in tensors if name not in chosen)
    _write(source, out.with_name(out.name + "-plain"), plain, config)
    block = _config(kind, kept)
    _write(source, out, stored, config | {"quantization_config": block})
    if kind == "modelopt-nvfp4":
        inner = {"quant_algo": "W4A16_NVFP4", "group_size": 16, "kv_cache_quant_algo": None}
        own = {"producer": block["producer"], "quantization": inner | {"exclude_modules": block["ignore"]}}
        zoo.write_json(out / "hf_quant_config.json", own)
    return out


def dequantize(source: Path, out: Path) -> Path:
    """Write `out`: the bf16 folder that a quantized one (FP8, NVFP4, or both) stands for, whosever it is."""
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        stored |= load_file(file)
    of_scales = ("weight_", "input_scale", "input_global_scale")
    plain = {name: value for name, value in stored.items() if not any(each in name for each in of_scales)}
    for name, scale in stored.items():
        module, _, suffix = name.rpartition(".")
        if suffix not in ("weight_scale", "weight_scale_inv"):
            continue
        codes = stored.get(f"{module}.weight_packed", stored.get(f"{module}.weight"))
        if codes.dtype == torch.float8_e4m3fn:
            wide = scale.float()  # of the tensor, of each row, or of tiles
            if wide.ndim == 2 and wide.shape[1] > 1:
                wide = wide.repeat_interleave(128, 0).repeat_interleave(128, 1)[
                    : len(codes), : codes.shape[1]
                ]
            elif wide.ndim == 2 and len(wide) not in (1, len(codes)):
                wide = wide.repeat_interleave(128, 0)[: len(codes)]
            value = codes.float() * wide
        else:
            halves = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
            levels = torch.cat([LEVELS, -LEVELS])[halves.long()]
            value = (levels.unflatten(1, (-1, 16)) * scale.float()[..., None]).flatten(1)
            divisor, factor = (stored.get(f"{module}.weight_{end}") for end in ("global_scale", "scale_2"))
            # A reciprocal, as runtimes take it: division would tip a bf16 value now and then.
            value = value * (factor if divisor is None else 1 / divisor)
        plain[f"{module}.weight"] = value.bfloat16()
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    _write(source, out, plain, config)
    (out / "hf_quant_config.json").unlink(missing_ok=True)
    return out


def _chosen(name: str, kind: str) -> bool:
    if name.startswith("mtp.") and kind != "fp8":
        return False
    return bool(LINEAR.search(name))


def _split(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    stacked = tensors.pop(prefix + "gate_up_proj")
    down = tensors.pop(prefix + "down_proj")
    inner = stacked.shape[1] // 2
    for expert in range(stacked.shape[0]):
        tensors[f"{prefix}{expert}.gate_proj.weight"] = stacked[expert, :inner]
        tensors[f"{prefix}{expert}.up_proj.weight"] = stacked[expert, inner:]
        tensors[f"{prefix}{expert}.down_proj.weight"] = down[expert]


def _amax(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The largest value of all that shares a global scale with `name`."""
    group = [name]
    for pattern in FUSED:
        if re.search(pattern, name):
            stem = re.sub(pattern + r"\.weight", "", name)
            group = [
                other for other in tensors if re.fullmatch(re.escape(stem) + pattern + r"\.weight", other)
            ]
    return torch.stack([tensors[other].float().abs().max() for other in group]).max()


def _fp8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    rows, columns = weight.shape
    assert rows % 128 == 0
    assert columns % 128 == 0
    tiles = weight.float().view(rows // 128, 128, columns // 128, 128)
    scale = (tiles.abs().amax((1, 3)) / 448).bfloat16()
    wide = scale.float()[:, None, :, None]
    codes = (tiles / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
    value = (codes.float() * wide).reshape(rows, columns).bfloat16()
    return {"codes": codes.view(rows, columns), "scale": scale}, value


def _nvfp4(weight: torch.Tensor, amax: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    factor = amax / (6 * 448)
    groups = weight.float().unflatten(1, (-1, 16))
    scale = (groups.abs().amax(2) / 6 / factor).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    wide = scale.float()[..., None] * factor
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2
    ratio = groups / wide
    codes = torch.bucketize(ratio.abs(), middles)
    value = (LEVELS[codes] * ratio.sign() * wide).flatten(1).bfloat16()
    codes = (codes | (ratio < 0).long() << 3).flatten(1).to(torch.uint8)
    return {"codes": codes[:, ::2] | codes[:, 1::2] << 4, "scale": scale, "factor": factor}, value


def _named(parts: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    match kind:
        case "fp8":
            return {"weight": parts["codes"], "weight_scale_inv": parts["scale"]}
        case "ct-fp8":
            return {"weight": parts["codes"], "weight_scale": parts["scale"]}
        case "ct-nvfp4":
            divisor = (1 / parts["factor"]).reshape(1)
            return {
                "weight_packed": parts["codes"],
                "weight_scale": parts["scale"],
                "weight_global_scale": divisor,
            }
        case "modelopt-nvfp4":
            return {
                "weight": parts["codes"],
                "weight_scale": parts["scale"],
                "weight_scale_2": parts["factor"],
            }
    raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")


def _config(kind: str, kept: list[str]) -> dict:
    match kind:
        case "fp8":
            return {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": kept,
            }
        case "modelopt-nvfp4":
            weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
            excluded = [name for name in kept if not name.startswith(("mtp.", "model.visual."))]
            return {
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
                "ignore": [*excluded, "model.visual*", "mtp.layers.0*", "mtp*"],
                "quant_algo": "W4A16_NVFP4",
                "quant_method": "modelopt",
                "producer": {"name": "modelopt", "version": "0.47.0"},
            }
    common = {"symmetric": True, "type": "float"}
    if kind == "ct-fp8":
        form, name = "float-quantized", "FP8_BLOCK"
        weights = {
            "num_bits": 8,
            "strategy": "block",
            "block_structure": [128, 128],
            "dynamic": False,
            **common,
        }
        inputs = {"num_bits": 8, "strategy": "group", "group_size": 128, "dynamic": True, **common}
    else:
        form, name, inputs = "nvfp4-pack-quantized", "NVFP4A16", None
        weights = {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "dynamic": False, **common}
        weights["scale_dtype"] = "torch.float8_e4m3fn"
    group = {
        "format": form,
        "input_activations": inputs,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {name: group},
        "format": form,
        "ignore": CT_IGNORE,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _write(source: Path, out: Path, tensors: dict[str, torch.Tensor], config: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, out / file.name)
    zoo.write_json(out / "config.json", config)
    zoo.write_tensors(out, {name: value.contiguous() for name, value in tensors.items()})


def reference_of(folder: Path, dtype: str = "float32") -> TransformersReference:
    """What transformers makes of a folder of floats."""
    return reference_from_view(diagnose(LocalCheckpoint(folder)).repaired.view(), dtype=dtype)
