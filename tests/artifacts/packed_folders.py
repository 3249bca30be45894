"""Small folders in every layout, written here with plain torch: nothing of what reads them is used.

``Packed`` starts from a zoo checkpoint and packs its linear layers; it knows what each matrix is after
packing (``expected``, float32, the formulas of each format written out), so that a reader can be compared.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from zoo import split_experts

LINEAR = re.compile(
    r"(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_qkv|in_proj_z|out_proj)"
    r"|mlp\.(shared_expert\.)?(gate|up|down)_proj|mlp\.experts\.\d+\.(gate|up|down)_proj)\.weight$"
)
MLP = re.compile(r"mlp\.(shared_expert\.)?(experts\.\d+\.)?(gate|up|down)_proj\.weight$")
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
Tensors = dict[str, torch.Tensor]


def read(folder: Path) -> Tensors:
    out: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def plain(name: str) -> str:
    """The text-only spelling."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


@dataclass
class Packed:
    """A folder being made.

    Attributes:
        tensors: what will be stored.
        expected: what the reader has to make of it, by canonical name; experts one by one.
        config: ``config.json``.
        small: other JSON files.
    """

    source: Path
    tensors: Tensors = field(default_factory=dict)
    expected: Tensors = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    metadata: str = "pt"

    def __post_init__(self) -> None:
        self.config = json.loads((self.source / "config.json").read_text())
        tensors = read(self.source)
        for prefix in ("model.", "mtp."):
            tensors = split_experts(tensors, prefix)
        self.tensors = tensors
        self.expected = {plain(name): tensor.float() for name, tensor in tensors.items()}

    def pack(
        self, wanted: Callable[[str], bool], how: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
    ) -> list[str]:
        """Replace matrices by their parts; the names of those that were left as they are."""
        left = []
        for name, tensor in list(self.tensors.items()):
            if not wanted(name):
                left.append(name)
                continue
            parts, value = how(name, tensor.float())
            del self.tensors[name]
            module = name.removesuffix(".weight")
            self.tensors |= {f"{module}.{part}": stored for part, stored in parts.items()}
            self.expected[plain(name)] = value
        return left

    def drop(self, pattern: str) -> None:
        """Lose tensors; the config says nothing of it."""
        lost = [name for name in self.tensors if re.search(pattern, name)]
        assert lost, pattern
        for name in lost:
            del self.tensors[name]

    def write(self, out: Path) -> Path:
        out.mkdir(parents=True, exist_ok=True)
        for file in self.source.iterdir():
            if not file.name.startswith(("model", "config")):
                shutil.copyfile(file, out / file.name)
        (out / "config.json").write_text(json.dumps(self.config))
        for name, value in self.small.items():
            (out / name).write_text(json.dumps(value))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": self.metadata})
        return out


# --- packing ---------------------------------------------------------------------------------------------


def per_tile(values: torch.Tensor, tile: int = 128) -> torch.Tensor:
    """The largest magnitude of each tile; the last ones may be smaller."""
    rows, columns = (-(-size // tile) for size in values.shape)
    out = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            out[i, j] = values[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile].abs().max()
    return out


def fp8_tiles(word: str) -> Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]:
    def pack(_: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = (per_tile(values) / 448).bfloat16()
        wide = torch.kron(scale.float(), torch.ones(128, 128))[: values.shape[0], : values.shape[1]]
        codes = (values / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": codes, word: scale}, codes.float() * wide

    return pack


def fp8_kept(name: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """As ModelOpt's ``FP8_PB_WO``, which keeps the axes that it has reduced."""
    parts, value = fp8_tiles("weight_scale")(name, values)
    return {**parts, "weight_scale": parts["weight_scale"].float()[:, None, :, None]}, value


def fp8_matrix(_: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = values.abs().max() / 448
    codes = (values / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(1.0)}, codes.float() * scale


def fp8_rows(_: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = values.abs().amax(1, keepdim=True) / 448
    codes = (values / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale.bfloat16()}, codes.float() * scale.bfloat16().float()


def e2m1(values: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest levels."""
    codes = (values.abs()[..., None] - LEVELS).abs().argmin(-1)
    return (codes + 8 * (values < 0)).to(torch.uint8)


def pairs(codes: torch.Tensor) -> torch.Tensor:
    return codes[:, 0::2] | codes[:, 1::2] << 4


def level(codes: torch.Tensor) -> torch.Tensor:
    return LEVELS[(codes & 7).int()] * torch.where(codes > 7, -1.0, 1.0)


def shared_amax(tensors: Tensors, name: str) -> float:
    """Of a matrix and its partner, gate and up."""
    other = (
        name.replace("gate_proj", "up_proj") if "gate_proj" in name else name.replace("up_proj", "gate_proj")
    )
    partners = [name] if "down_proj" in name else [name, other]
    return max(float(tensors[each].abs().max()) for each in partners)


def nvfp4(tensors: Tensors, *, inverse: bool) -> Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]:
    """ModelOpt's parts, or (``inverse``) compressed-tensors'."""
    tensors = dict(tensors)

    def pack(name: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        shared = torch.tensor(shared_amax(tensors, name) / (6 * 448), dtype=torch.float32)
        blocks = values.view(len(values), -1, 16)
        scale = (blocks.abs().amax(-1) / 6 / shared).clamp(2**-9, 448).to(torch.float8_e4m3fn)
        steps = (scale.float() * shared)[..., None]
        codes = e2m1(blocks / steps)
        packed = pairs(codes.view(len(values), -1))
        value = level(codes) * scale.float()[..., None]
        if inverse:
            divisor = (1 / shared).view(1)
            parts = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": divisor}
            return parts, (value / divisor).view(values.shape)
        parts = {"weight": packed, "weight_scale": scale, "weight_scale_2": shared}
        return parts, (value * shared).view(values.shape)

    return pack


def integers(
    bits: int, group: int, *, points: bool
) -> Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]:
    """compressed-tensors' ``pack-quantized``; ``points``: with zero points, packed down the rows."""

    def pack(_: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        blocks, least = values.view(len(values), -1, group), -(1 << bits - 1)
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        if not points:
            high = torch.maximum(high, -low)
            low = -high
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-7).bfloat16()
        wide = scale.float()[..., None]
        zero = (least - low / wide[..., 0]).round().clamp(least, -least - 1) if points else 0 * low
        codes = ((blocks / wide).round() + zero[..., None]).clamp(least, -least - 1)
        stored = {
            "weight_packed": bits_of((codes - least).view(values.shape).to(torch.int64), bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor(values.shape),
        }
        if points:
            stored["weight_zero_point"] = bits_of((zero - least).T.to(torch.int64), bits).T
        parts = {
            k: part.view(torch.int32) if part.dtype == torch.uint32 else part for k, part in stored.items()
        }
        return parts, ((codes - zero[..., None]) * wide).view(values.shape)

    return pack


# --- folders ---------------------------------------------------------------------------------------------


def fp8_folder(source: Path) -> Packed:
    """As Qwen publishes it: the MTP layer in FP8 too, ``mtp.fc`` and what is no projection listed."""
    folder = Packed(source)
    left = folder.pack(lambda name: bool(LINEAR.search(name)), fp8_tiles("weight_scale_inv"))
    folder.config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [name.removesuffix(".weight") for name in left],
    }
    return folder


def compressed_config(name: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "config_groups": {name: {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head", "re:.*visual.*", "re:.*mtp.*", "re:.*in_proj_[ab]$"],
    }


ROUTERS = ["re:.*mlp\\.gate$", "re:.*shared_expert_gate$"]


def compressed_fp8(source: Path, strategy: str = "block") -> Packed:
    folder = Packed(source)
    pack = fp8_tiles("weight_scale") if strategy == "block" else fp8_rows
    folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), pack)
    folder.config["quantization_config"] = compressed_config(
        "FP8", {"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": [128, 128]}
    )
    folder.config["quantization_config"]["ignore"] += ROUTERS
    return folder


def compressed_nvfp4(source: Path) -> Packed:
    folder = Packed(source)
    pack = nvfp4(folder.tensors, inverse=True)
    folder.pack(lambda name: bool(MLP.search(name)) and not name.startswith("mtp."), pack)
    folder.config["quantization_config"] = compressed_config(
        "NVFP4A16", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    )
    folder.config["quantization_config"]["ignore"] += [*ROUTERS, "re:.*self_attn.*", "re:.*linear_attn.*"]
    return folder


def signed_bytes(_: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = (values.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (values / scale.float()).round().clamp(-128, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scale}, codes * scale.float()


def compressed_bytes(source: Path) -> Packed:
    """``W8A8``: a signed byte each, a scale a row."""
    folder = Packed(source)
    folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), signed_bytes)
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    declared = compressed_config("W8A8", weights)
    declared["config_groups"]["W8A8"]["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": True}
    declared["ignore"] += ROUTERS
    folder.config["quantization_config"] = declared
    return folder


def compressed_int(source: Path, *, points: bool = False) -> Packed:
    folder = Packed(source)
    pack = integers(4, 32, points=points)
    folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), pack)
    folder.config["quantization_config"] = compressed_config(
        "W4A16",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": not points},
    )
    folder.config["quantization_config"]["ignore"] += ROUTERS
    return folder


def modelopt(source: Path, *, mixed: bool = False) -> Packed:
    """``W4A16_NVFP4`` for the MLP; ``mixed``: FP8 attention as well, as NVIDIA publishes it."""
    folder = Packed(source)
    pack = nvfp4(folder.tensors, inverse=False)
    four = {name for name in folder.tensors if MLP.search(name) and not name.startswith("mtp.")}
    eight = {name for name in folder.tensors if LINEAR.search(name) and not name.startswith("mtp.")} - four
    folder.pack(lambda name: name in four, pack)
    if mixed:
        folder.pack(lambda name: name in eight, fp8_matrix)
    algo = "MIXED_PRECISION" if mixed else "W4A16_NVFP4"
    exclude = ["mtp.layers.0*", "mtp*"]
    declared: dict[str, Any] = {"quant_algo": algo}
    if mixed:
        layers = {name.removesuffix(".weight"): {"quant_algo": "FP8"} for name in eight}
        w4 = {"quant_algo": "W4A16_NVFP4", "group_size": 16}
        layers |= {re.sub(r"(\.experts)\..*", r"\1", name.removesuffix(".weight")): w4 for name in four}
        declared["quantized_layers"] = layers
    else:
        exclude += ["lm_head", "model.visual*", "*.self_attn*", "*.linear_attn*"]
    folder.config["quantization_config"] = {"quant_method": "modelopt", "ignore": exclude, **declared}
    folder.small["hf_quant_config.json"] = {
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {
            "exclude_modules": exclude,
            "kv_cache_quant_algo": None,
            "group_size": 16,
            **declared,
        },
    }
    return folder


def modelopt_tiles(source: Path) -> Packed:
    """``FP8_PB_WO``."""
    folder = Packed(source)
    left = folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), fp8_kept)
    exclude = ["mtp*", "model.visual*", *(n.removesuffix(".weight") for n in left if n.startswith("lm_head"))]
    exclude += [name.removesuffix(".weight") for name in left if re.search(r"in_proj_[ab]\.", name)]
    declared = {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo", "ignore": exclude}
    folder.config["quantization_config"] = declared
    return folder


def modelopt_awq(source: Path) -> Packed:
    """``W4A16_AWQ``: two rows in a byte, and what inputs are multiplied by where no norm can take it."""

    def pack(name: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        factors = torch.linspace(0.5, 2, values.shape[1]).bfloat16()
        smooth = name.endswith(("down_proj.weight", "o_proj.weight", "out_proj.weight"))
        blocks = (values / factors.float() if smooth else values).view(len(values), -1, 32)
        scale = blocks.abs().amax(-1) / 7
        codes = (blocks / scale[..., None]).round().clamp(-8, 7)
        four = (codes.to(torch.int16) & 15).view(len(values) // 2, 2, -1)
        parts = {"weight": (four[:, 0] | four[:, 1] << 4).to(torch.uint8), "weight_scale": scale}
        value = (codes * scale[..., None]).view(values.shape)
        if not smooth:
            return parts, value
        return {**parts, "pre_quant_scale": factors}, value * factors.float()

    folder = Packed(source)
    folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), pack)
    exclude = ["lm_head", "mtp*", "model.visual*"]
    exclude += [name.removesuffix(".weight") for name in folder.tensors if re.search(r"in_proj_[ab]\.", name)]
    folder.config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "W4A16_AWQ",
        "ignore": exclude,
    }
    inner = {"quant_algo": "W4A16_AWQ", "group_size": 32, "pre_quant_scale": True, "exclude_modules": exclude}
    folder.small["hf_quant_config.json"] = {"quantization": inner}
    return folder


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map


def in_words(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Columns of whole numbers in int32, so many to a word: the first in the lowest bits, or in ``order``."""
    each = 32 // bits
    columns = codes.long().unflatten(1, (-1, each))[..., list(order or range(each))]
    words = (columns << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def turned(
    word: str,
    *,
    bits: int = 4,
    group: int = 32,
    points: bool = True,
    less_one: bool = True,
    reorder: bool = False,
) -> Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]:
    """AutoAWQ's (``awq``) or GPTQ's parts: (code - zero) * scale, inputs down and outputs across.

    Args:
        points: zero points where they fall, else in the middle.
        less_one: GPTQ's first format.
        reorder: groups of inputs that do not lie side by side, as ``desc_act`` has them.
    """

    def pack(name: str, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs, most = values.shape[1], 2**bits - 1
        place = torch.arange(inputs) // group
        if reorder:
            place = place[torch.randperm(inputs, generator=torch.Generator().manual_seed(len(name)))]
        scales, zeros = [], []
        for each in range(inputs // group):
            mine = values[:, place == each]
            low, high = mine.amin(1).clamp(max=0), mine.amax(1).clamp(min=0)
            if not points:
                high = torch.maximum(high, -low)
                low = -high
            scale = ((high - low) / most).clamp(min=1e-4).half()
            scales.append(scale)
            zeros.append(
                (-low / scale.float()).round().clamp(1, most) if points else 0 * low + 2 ** (bits - 1)
            )
        scale, zero = torch.stack(scales), torch.stack(zeros)  # (groups, outputs)
        wide, least = scale.float()[place].T, zero[place].T
        codes = ((values / wide).round() + least).clamp(0, most)
        stored = zero - 1 if word == "gptq" and less_one else zero
        order = AWQ_ORDER if word == "awq" else None
        across = in_words(codes.T, bits, order) if word == "awq" else in_words(codes, bits).T
        parts = {"qweight": across, "qzeros": in_words(stored, bits, order), "scales": scale}
        if word == "gptq":
            parts["g_idx"] = place.to(torch.int32)
        return parts, (codes - least) * wide

    return pack


def awq_folder(source: Path) -> Packed:
    """As AutoAWQ leaves it; what it does not pack is listed by parts of paths."""
    folder = Packed(source)
    folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), turned("awq"))
    listed = ["visual", "model.visual.", "mtp", "in_proj_a", "in_proj_b"]
    if "num_experts" in folder.config["text_config"]:  # of a dense MLP that would be a part of gate_up_proj
        listed += ["mlp.gate", "shared_expert_gate"]
    folder.config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": listed,
    }
    return folder


def gptq_folder(source: Path, *, sym: bool = True, **how: Any) -> Packed:
    """As GPTQModel leaves it."""
    folder = Packed(source)
    pack = turned("gptq", points=not sym, **how)
    folder.pack(lambda name: bool(LINEAR.search(name)) and not name.startswith("mtp."), pack)
    excluded = ("mtp", "visual", "in_proj_(a|b|ba)$")
    folder.config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": how.get("bits", 4),
        "group_size": 32,
        "sym": sym,
        "desc_act": how.get("reorder", False),
        "checkpoint_format": "gptq" if how.get("less_one", True) else "gptq_v2",
        "dynamic": {f"-:.*{each}.*" if each[-1] != "$" else f"-:.*{each}": {} for each in excluded},
    }
    return folder


# --- MLX -------------------------------------------------------------------------------------------------


def bits_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Every row as one little-endian stream of bits, in words of 32."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(row))
        rows.append(list(number.to_bytes(len(row) * bits // 8, "little")))
    return torch.tensor(rows, dtype=torch.uint8).view(torch.uint32)


def affine(values: torch.Tensor, bits: int, group: int) -> tuple[Tensors, torch.Tensor]:
    blocks = values.view(len(values), -1, group)
    low, high = blocks.amin(-1), blocks.amax(-1)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-7).bfloat16()
    bias = low.bfloat16()
    wide, least = scale.float()[..., None], bias.float()[..., None]
    codes = ((blocks - least) / wide).round().clamp(0, 2**bits - 1)
    packed = bits_of(codes.view(len(values), -1).to(torch.uint8), bits)
    return {"weight": packed, "scales": scale, "biases": bias}, (codes * wide + least).view(values.shape)


def microscaled(values: torch.Tensor, mode: str) -> tuple[Tensors, torch.Tensor]:
    """``mxfp4``, ``mxfp8`` or ``nvfp4`` as MLX stores them."""
    group = 16 if mode == "nvfp4" else 32
    blocks = values.view(len(values), -1, group)
    most = blocks.abs().amax(-1)
    if mode == "nvfp4":
        stored = (most / 6).to(torch.float8_e4m3fn)
        scale, stored = stored.float(), stored.view(torch.uint8)
    else:
        exponent = torch.floor(torch.log2(most)) - (2 if mode == "mxfp4" else 8)
        scale, stored = 2.0**exponent, (exponent + 127).to(torch.uint8)
    steps = blocks / scale[..., None]
    if mode == "mxfp8":
        codes = steps.clamp(-448, 448).to(torch.float8_e4m3fn)
        found, packed = codes.float(), codes.view(torch.uint8).view(len(values), -1)
    else:
        four = e2m1(steps)
        found, packed = level(four), pairs(four.view(len(values), -1))
    parts = {"weight": packed.contiguous().view(torch.uint32), "scales": stored}
    return parts, (found * scale[..., None]).view(values.shape)


SHIFTED = re.compile(r"norm(_embedding|_hidden)?\.weight$")
NEVER = re.compile(r"(norm(_embedding|_hidden)?\.weight|conv1d\.weight|A_log|dt_bias|mtp\.fc\.weight)$")


def mlx_names(tensors: Tensors) -> Tensors:
    """mlx-lm's names for a zoo checkpoint's tensors, still in Hugging Face's conventions; no vision."""
    out: Tensors = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if "visual" in name:
            continue
        short = name.replace("model.language_model.", "language_model.model.")
        short = short.replace("lm_head", "language_model.lm_head")
        if match := re.search(r"experts\.\d+\.", short):
            stacks.setdefault(short.replace(match[0], "switch_mlp."), []).append(tensor)
        else:
            out[short] = tensor
    return out | {name: torch.stack(each) for name, each in stacks.items()}


def mlx_folder(source: Path, *, bits: int = 4, group: int = 64, mode: str = "affine") -> Packed:
    """As mlx-lm writes it; the head, not quantized, is left in ``mtp.*`` for a layout to take."""
    folder = Packed(source, metadata="mlx")
    stored, folder.expected = mlx_names(folder.tensors), {}
    folder.tensors = {}
    for name, tensor in stored.items():
        canonical = name.replace("language_model.model.", "model.").replace("language_model.", "")
        canonical = canonical.replace("switch_mlp", "experts")
        if NEVER.search(name) or name.startswith("mtp."):
            kept, value = tensor, tensor.float()
            if SHIFTED.search(name) and "linear_attn" not in name:
                kept = (tensor.float() + 1).to(tensor.dtype)
                value = kept.float() - 1
            if name.endswith("conv1d.weight"):
                kept = tensor.transpose(1, 2)
            folder.tensors[name], folder.expected[canonical] = kept, value
            continue
        flat = tensor.float().reshape(-1, tensor.shape[-1])
        wide = 8 if name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")) else bits
        parts, value = affine(flat, wide, group) if mode == "affine" else microscaled(flat, mode)
        module = name.removesuffix(".weight")
        shaped = {part: each.reshape(*tensor.shape[:-1], -1) for part, each in parts.items()}
        folder.tensors |= {f"{module}.{part}": each for part, each in shaped.items()}
        folder.expected[canonical] = value.reshape(tensor.shape)
    settings: dict[str, Any] = {"group_size": group, "bits": bits, "mode": mode}
    if mode == "affine":
        for name in folder.tensors:
            if name.endswith(("mlp.gate.scales", "shared_expert_gate.scales")):
                settings[name.removesuffix(".scales")] = {"group_size": group, "bits": 8}
    folder.config |= {"quantization": settings, "quantization_config": settings}
    folder.config.pop("vision_config", None)
    return folder


def take_head(folder: Packed) -> Tensors:
    """The head's tensors, out of the folder; the trunk's config then declares none."""
    head = {name: folder.tensors.pop(name) for name in list(folder.tensors) if name.startswith("mtp.")}
    folder.config["text_config"]["mtp_num_hidden_layers"] = 0
    return head
