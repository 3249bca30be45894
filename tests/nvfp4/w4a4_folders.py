"""What the W4A4 tests share: folders, what a whole model says of its inputs, and scales that are wrong."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvfp4_folders import plan, repaired
from nvfp4_reading import tensors_in
from safetensors.torch import save_file

from qexport.evidence.options import StreamOptions
from qexport.evidence.products import InputProducts
from qexport.onepass.execute import execute
from qexport.receipt.largest_inputs import read_inputs
from qexport.receipt.names import LARGEST_INPUTS
from qexport.run import feedback

EXACT = StreamOptions(precision="float32")
SCALES = ("input_global_scale", "input_scale")


def tokens() -> np.ndarray:
    return (np.arange(4 * 24, dtype=np.int32) * 7 % 300).reshape(4, 24)


def w4a4(source: Path, out: Path, stream: StreamOptions = EXACT, **options: Any) -> dict[str, list[float]]:
    """Write the folder; the largest inputs, by tensor."""
    made = plan(source, scheme="NVFP4", **options)
    with closing(InputProducts(repaired(source).view(), tokens(), stream)) as products:
        execute([made], out, threads=2, products=products)
        details = feedback.told(made, products).details[LARGEST_INPUTS]
    return {name: read_inputs(shown) for name, shown in details.items()}


def largest_of_whole(source: Path, *, sent: bool = False) -> dict[str, list[float]]:
    """By the module's path, from transformers' whole model: of experts, each of all tokens; with ``sent``, of
    those that the router sends to any."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval().model
    seen: dict[str, list[float]] = {}

    def note(name: str, inputs: list[torch.Tensor]) -> None:
        found = [float(each.abs().max()) for each in inputs]
        seen[name] = [max(pair) for pair in zip(found, seen.get(name, found), strict=True)]

    def experts(name: str, stack: Any, states: torch.Tensor, chosen: torch.Tensor) -> None:
        each = range(len(stack.down_proj))
        shown = [states[(chosen == number).any(-1)] if sent else states for number in each]
        note(f"{name}.gate_proj", [torch.cat(shown)] if sent else shown)
        halves = [(shown[number] @ stack.gate_up_proj[number].t()).chunk(2, dim=-1) for number in each]
        inner = [torch.nn.functional.silu(gate) * up for gate, up in halves]
        note(f"{name}.down_proj", [torch.cat(inner)] if sent else inner)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: note(name, [args[0]]))
        elif type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(lambda m, args, name=name: experts(name, m, args[0], args[1]))
    with torch.no_grad():
        model(torch.from_numpy(tokens()).long(), use_cache=False)
    return seen


def planted(out: Path, to: Path, change: Any) -> Path:
    """The folder with its scales of inputs changed: ``change(name, scale)``, ``None`` to leave one out."""
    to.mkdir()
    stored = {}
    for name, tensor in tensors_in(out).items():
        stored[name] = change(name, tensor) if name.endswith(SCALES) else tensor
    save_file({n: t for n, t in stored.items() if t is not None}, to / "model.safetensors")
    for file in out.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (to / file.name).write_bytes(file.read_bytes())
    return to
