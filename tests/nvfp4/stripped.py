"""Folders as libraries leave them: quantized by qexport, then without head and tower and their entries."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def strip(folder: Path, *, tower: bool = True) -> Path:
    """Take the MTP head (and the vision tower) out of a folder and of what it declares."""
    lost = ("mtp.", "model.visual.") if tower else ("mtp.",)
    for file in folder.glob("*.safetensors"):
        kept = {name: t for name, t in load_file(file).items() if not name.startswith(lost)}
        save_file(kept, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    declared = config["quantization_config"]
    for key in {"ignore", "modules_to_not_convert"} & declared.keys():
        declared[key] = [e for e in declared[key] if not any(w in e for w in ("mtp", "visual"))]
    config["text_config"]["mtp_num_hidden_layers"] = 0
    if tower:
        del config["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    other = folder / "hf_quant_config.json"
    if other.exists():
        found = json.loads(other.read_text())
        inner = found["quantization"]
        inner["exclude_modules"] = declared["ignore"]
        other.write_text(json.dumps(found))
    return folder
