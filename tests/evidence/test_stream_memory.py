"""What the pass is for: a model runs in the memory of two of its layers. Measured in a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc"),
]

LAYERS, WIDTH, TOKENS = 24, 1024, 1024
# Beside layers and hidden states: one matrix in float32 for its product, a batch's own activations, and
# a piece of the file that is being copied. All of them stay the same for any number of layers
# (measured in bf16: 247 MiB in all for 24 layers, 246 for 48).
CONSTANT = 224 << 20

CHILD = """
import json, sys
from pathlib import Path

import numpy as np

from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.stream import LayerStream
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine


def status(key):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key + ":")]
    return int(line.split()[1]) * 1024


def ready(folder, options):
    return LayerStream(examine(ModelChoice(folder), download=False).repaired.view(), options)


small, big, tokens, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
options = StreamOptions(precision=precision)
ids = (np.arange(tokens, dtype=np.int32) * 7 % 300).reshape(-1, 256)
ready(small, options).run(ids[:1], InputSquares())  # libraries and their workspaces are there from now on
stream, squares = ready(big, options), InputSquares()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
stream.run(ids, squares)
print(json.dumps({"growth": status("VmHWM") - before, "tensors": len(squares.sums)}))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, zoo: Any) -> Path:
    """A Qwen3 of 24 layers, all alike, 33 MB each."""
    one = zoo("qwen3", layers=1, hidden=WIDTH, intermediate=4096, heads=16, kv_heads=4)
    folder = tmp_path_factory.mktemp("big")
    for path in one.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((one / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS}
    config["max_window_layers"] = LAYERS
    (folder / "config.json").write_text(json.dumps(config))
    layer, rest = {}, {}
    for name, tensor in load_file(one / "model.safetensors").items():
        (layer if ".layers.0." in name else rest)[name] = tensor
    parts = {
        f"layer{n}.safetensors": {k.replace(".layers.0.", f".layers.{n}."): t for k, t in layer.items()}
        for n in range(LAYERS)
    } | {"rest.safetensors": rest}
    for name, tensors in parts.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}, "metadata": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(("precision", "bytes_each"), [("auto", 2), ("float32", 4)])
def test_two_layers_and_the_hidden_states(zoo: Any, big: Path, precision: str, bytes_each: int) -> None:
    words = [sys.executable, "-c", CHILD, str(zoo("qwen3")), str(big), str(TOKENS), precision]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["tensors"] == 7 * LAYERS
    layer = (big / "layer0.safetensors").stat().st_size // 2 * bytes_each
    whole = LAYERS * layer
    allowed = 2 * layer + 4 * TOKENS * WIDTH + CONSTANT
    assert allowed < whole / 2  # else this would say nothing
    assert found["growth"] < allowed, f"{found['growth'] >> 20} MiB, allowed are {allowed >> 20}"
