"""Small checkpoint folders, written by the official safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {"model_type": "qwen3", "hidden_size": 8}


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every kind of shape and dtype that a checkpoint may hold."""
    torch.manual_seed(seed)
    return {
        "embed.weight": torch.randn(16, 8).bfloat16(),
        "layer.0.conv": torch.randn(4, 1, 3).bfloat16(),
        "layer.0.norm": torch.randn(8).float(),
        "layer.0.scale": torch.tensor(0.5, dtype=torch.float16),
        "layer.1.odd": torch.randn(5, 7).half(),
        "layer.1.none": torch.empty(0, 8).bfloat16(),
    }


def write_folder(
    folder: Path,
    shards: list[dict[str, torch.Tensor]],
    *,
    index: bool | None = None,
    config: dict | None = None,
) -> Path:
    """One file per entry of ``shards``, config.json, and an index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(shards)
    names = ["model.safetensors"]
    if count > 1:
        names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for name, tensors in zip(names, shards, strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    if count > 1 if index is None else index:
        weight_map = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def two_shards() -> list[dict[str, torch.Tensor]]:
    tensors = some_tensors()
    return [
        {key: tensors[key] for key in ("embed.weight", "layer.0.conv", "layer.0.norm")},
        {key: tensors[key] for key in ("layer.0.scale", "layer.1.odd", "layer.1.none")},
    ]


def fingerprint(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file, to prove that a source was left alone."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def bits(tensor: torch.Tensor) -> tuple[list[int], torch.dtype, bytes]:
    """Shape, dtype and bytes: -0 is not 0 here, and NaN equals itself."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return list(tensor.shape), tensor.dtype, data
